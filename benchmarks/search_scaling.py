"""Time and memory of the search for stages on unlike devices, against the size of the problem.

    python benchmarks/search_scaling.py [output=json] [plot=FILE.png|FILE.svg] [repeats=3]

The model is like Llama 3.1 405B in fp8 (126 layers of 3.2 GB, a head of 4.2 GB), on equal parts of
up to four types of GPU in nodes of 8, each stage on 1, 2, 4 or 8 of one type. Layers that aren't
alike differ by up to 30 %. Seconds are the least of the repeats; the peak is of Python's memory
(tracemalloc), in a run of its own.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from time import perf_counter

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parallel.errors import ConfigError, TesseraError, did_you_mean
from parallel.planner.stage_problem import Option, Pool, StageProblem
from parallel.planner.stage_search import StageSearch
from parallel.report.picture import check_picture
from parallel.report.render import make_console, make_table, write_line, write_table
from parallel.units import MIB, format_seconds

_LAYER, _HEAD = 3.2e9, 4.2e9
_GPUS = (
    # name, bytes of memory for a run, bytes per second, price
    ("h100", 68e9, 2.9e12, 3.0),
    ("l40s", 38e9, 0.75e12, 0.9),
    ("h200", 120e9, 4.1e12, 3.8),
    ("a100", 68e9, 1.7e12, 1.8),
)
_KEYS = ("output", "plot", "repeats")


@dataclass(frozen=True)
class Result:
    layers: int
    gpus: int
    types: int
    alike: bool
    bottleneck_seconds: float
    latency_seconds: float
    front_seconds: float
    peak_mib: float


def gpu_problem(layers: int, gpus: int, types: int, alike: bool) -> StageProblem:
    """Layers are as many as given, the model's bytes with them."""
    draw = random.Random(1)
    sizes = [_LAYER * (1 if alike else draw.uniform(1, 1.3)) for _ in range(layers)]
    nodes = [(gpus // 8) // types + (i < (gpus // 8) % types) for i in range(types)]
    pools, options = [], []
    for number, (name, memory, rate, price) in enumerate(_GPUS[:types]):
        pools.append(Pool(name, (8,) * max(1, nodes[number]), price))
        for tp in (1, 2, 4, 8):
            # Two all-reduces of a layer.
            sums = 0.0 if tp == 1 else 1.5e-5 + 2e-6 * tp
            seconds = [size / tp / rate + sums for size in sizes]
            held = [int(size / tp) for size in sizes]
            seconds[-1] += _HEAD / tp / rate
            held[0] += int(_HEAD / tp)
            held[-1] += int(_HEAD / tp)
            options.append(
                Option(number, tp, tuple(seconds), tuple(held), int(memory), 1e-4, int(4e9))
            )
    hops = tuple(tuple(1e-5 if a.pool == b.pool else 8e-5 for b in options) for a in options)
    return StageProblem(tuple(pools), tuple(options), hops)


def sizes() -> Iterator[tuple[int, int, int, bool]]:
    for alike in (True, False):
        for gpus in (64, 128, 256, 512, 1024):
            yield 126, gpus, 3, alike
        for types in (1, 2, 4):
            yield 126, 512, types, alike
        for layers in (32, 64, 256):
            yield layers, 512, 3, alike


def measure(layers: int, gpus: int, types: int, alike: bool, repeats: int) -> Result:
    problem = gpu_problem(layers, gpus, types, alike)

    def seconds(solve: Callable[[StageSearch], object], times: int) -> float:
        best = float("inf")
        for _ in range(times):
            begin = perf_counter()
            solve(StageSearch(problem))
            best = min(best, perf_counter() - begin)
        return best

    tracemalloc.start()
    StageSearch(problem).bottleneck()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Result(
        layers,
        gpus,
        types,
        alike,
        seconds(lambda s: s.bottleneck(), repeats),
        seconds(lambda s: s.latency(), repeats),
        seconds(lambda s: s.front(8), 1),
        peak / MIB,
    )


def show(results: Sequence[Result]) -> None:
    console = make_console()
    table = make_table(
        "layers|GPUs|types|alike|slowest stage|all stages|front of 8|peak MiB", left=0
    )
    for r in results:
        table.add_row(
            str(r.layers),
            str(r.gpus),
            str(r.types),
            "yes" if r.alike else "no",
            format_seconds(r.bottleneck_seconds),
            format_seconds(r.latency_seconds),
            format_seconds(r.front_seconds),
            f"{r.peak_mib:.1f}",
        )
    write_table(console, table)
    command = " ".join(["python", "benchmarks/search_scaling.py", *sys.argv[1:]])
    write_line(
        console,
        f"{date.today().isoformat()}: {platform.machine()}, Python {platform.python_version()}; "
        f"{command}",
    )


def main() -> int:
    try:
        values = {"output": "table", "plot": "", "repeats": "3"}
        for word in sys.argv[1:]:
            key, _, value = word.partition("=")
            if key not in _KEYS:
                known = ", ".join(_KEYS)
                raise ConfigError(f"unknown key '{key}'{did_you_mean(key, _KEYS)}; known: {known}")
            values[key] = value
        if values["output"] not in ("table", "json"):
            raise ConfigError(f"output={values['output']} is unknown; give table or json")
        if not values["repeats"].isdecimal() or values["repeats"] == "0":
            raise ConfigError(f"repeats={values['repeats']} is not a number from 1 on")
        plot = Path(values["plot"]) if values["plot"] else None
        if plot is not None:
            check_picture(plot)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = [measure(*size, repeats=int(values["repeats"])) for size in sizes()]
    if plot is not None:
        from benchmarks.search_plot import write_plot

        write_plot(results, plot)
    if values["output"] == "json":
        print(json.dumps({"results": [asdict(r) for r in results]}, indent=2))
    else:
        show(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
