"""The plan beside what was counted: the report's JSON form and what it says in a few lines.

A rank's measurements come as `{"rank", "measured_bytes": {cause: bytes or None}, "bytes_read",
"peak_rss_bytes", "memory_timeline", "instrument"}`, a collective as `{"rank", "axis", "op",
"phase", "layer", "backend", "calls", "bytes", "seconds", "wait_seconds", …}` where `seconds` is the
whole time in it and `wait_seconds` the part spent on late peers. A phase's entry in `steps` holds
`predicted_seconds` and `measured_seconds`, summed over the run, and `steps`, how many there were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parallel.units import format_bytes, format_seconds

Json = Mapping[str, Any]

CAUSES = (
    "weights",
    "kv_cache",
    "activations",
    "communication",
    "runtime",
    "peak_tensors",
    "total",
)
"""Causes of memory; the last two are sums of those before them."""
EXACT = ("weights", "kv_cache")
PHASES = ("prefill", "decode")
_SWAP = "swap"
_GROUP = ("axis", "op", "layer", "phase", "backend")
SPLITS = ("transfer_seconds", "wait_seconds", "exposed_seconds", "hidden_seconds")
"""Parts of a collective's seconds; `hidden_seconds` are beside them."""


def shown_causes(memory: Json) -> tuple[str, ...]:
    """`CAUSES`, and beside the cache what swapping takes, where there is such a thing."""
    after = CAUSES.index("kv_cache") + 1
    return (*CAUSES[:after], _SWAP, *CAUSES[after:]) if memory.get(_SWAP) else CAUSES


def build_report(
    plan: Json,
    ranks: Iterable[Json],
    collectives: Iterable[Json],
    steps: Mapping[str, Json],
    one_rank_bytes: Json | None = None,
) -> dict[str, Any]:
    """The report of one run. A rank that didn't answer has `measured: None` throughout.

    `one_rank_bytes` is what a single rank would hold of `weights` and `kv_cache`; without it
    the ranks of one replica are summed, where what they hold twice counts twice."""
    measured = {entry["rank"]: entry for entry in ranks}
    timelines = (entry.get("memory_timeline") or () for entry in measured.values())
    entries = [dict(entry) for entry in collectives]
    return {
        "plan": dict(plan),
        "ranks": [_rank(planned, measured.get(planned["rank"], {})) for planned in plan["ranks"]],
        "collectives": entries,
        "steps": {phase: dict(steps[phase]) for phase in PHASES if phase in steps},
        "saved": _saved(plan, one_rank_bytes),
        "communication": {
            phase: _phase_cost(entries, phase, steps[phase]) for phase in PHASES if phase in steps
        },
        "memory_timeline": [row for rows in timelines for row in rows],
        "instrument": _instrument(measured, steps),
    }


def _instrument(measured: Mapping[int, Json], steps: Mapping[str, Json]) -> dict[str, Any]:
    """What the instruments cost a step, on the rank where they cost most."""
    found = {rank: cost for rank, entry in measured.items() if (cost := entry.get("instrument"))}
    each = [cost["seconds"] / cost["steps"] for cost in found.values() if cost["steps"]]
    count = sum(step.get("steps") or 0 for step in steps.values())
    seconds = sum(step.get("measured_seconds") or 0.0 for step in steps.values())
    most = max(each, default=None)
    return {
        "seconds_per_step": most,
        "share": None if most is None or not seconds else most * count / seconds,
        "ranks": [{"rank": rank, **cost} for rank, cost in found.items()],
    }


def _rank(planned: Json, found: Json) -> dict[str, Any]:
    measured = found.get("measured_bytes", {})
    predicted = _of_the_same_steps(planned["memory_bytes"], found.get("predicted_activations"))
    return {
        "rank": planned["rank"],
        "memory_bytes": {
            cause: {"predicted": predicted[cause], "measured": measured.get(cause)}
            for cause in shown_causes(predicted)
            if cause in predicted
        },
        "bytes_read": found.get("bytes_read"),
        "peak_rss_bytes": found.get("peak_rss_bytes"),
    }


def _of_the_same_steps(predicted: Json, activations: int | None) -> Json:
    """A rank may measure smaller steps than the plan has priced; then so is the prediction."""
    if activations is None:
        return predicted
    less = predicted["activations"] - activations
    sums = {name: predicted[name] - less for name in ("peak_tensors", "total")}
    return {**predicted, "activations": activations, **sums}


def _saved(plan: Json, one_rank_bytes: Json | None) -> dict[str, Any]:
    """Weights and cache that each rank is spared, against one rank that holds them all."""
    replica = [rank for rank in plan["ranks"] if rank["coordinates"]["dp"] == 0]
    if one_rank_bytes is None:
        whole = sum(rank["memory_bytes"][cause] for rank in replica for cause in EXACT)
    else:
        whole = sum(one_rank_bytes[cause] for cause in EXACT)
    held = [(r["rank"], sum(r["memory_bytes"][cause] for cause in EXACT)) for r in plan["ranks"]]
    return {
        "one_rank_bytes": whole,
        "basis": "sum of the ranks" if one_rank_bytes is None else "plan of one rank",
        "ranks": [{"rank": rank, "bytes": whole - bytes_} for rank, bytes_ in held],
    }


def sum_steps(parts: Iterable[Json]) -> dict[str, Any]:
    """Steps of several replicas added up, by phase; those who led none have counted none."""
    total: dict[str, Any] = {}
    for part in parts:
        for phase, figures in part.items():
            sums = total.setdefault(phase, dict.fromkeys(figures, 0))
            for name, value in figures.items():
                sums[name] += value
    return total


def sum_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several schedulers, by name."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def sum_collectives(collectives: Iterable[Json]) -> list[dict[str, Any]]:
    """One row for each axis, op, layer, phase and backend, over all ranks.

    Ranks take part in a collective together: `calls`, `bytes` and `seconds` are those of the rank
    that has most, the parts of `seconds` are that rank's, `all_ranks_bytes` is the sum. Most time
    first."""
    groups: dict[tuple[str, ...], list[Json]] = {}
    for entry in collectives:
        groups.setdefault(tuple(str(entry[key]) for key in _GROUP), []).append(entry)
    rows = [
        {
            **dict(zip(_GROUP, group, strict=True)),
            "ranks": len({entry["rank"] for entry in entries}),
            "calls": _most(entries, "calls"),
            "bytes": _most(entries, "bytes"),
            "all_ranks_bytes": sum(entry["bytes"] for entry in entries),
            "seconds": _most(entries, "seconds"),
            **_split(entries),
        }
        for group, entries in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["seconds"], -row["bytes"]))


def _most(entries: Iterable[Json], key: str) -> Any:
    """The largest sum over one rank's entries; a figure that wasn't taken counts as 0."""
    sums: dict[int, Any] = {}
    for entry in entries:
        sums[entry["rank"]] = sums.get(entry["rank"], 0) + (entry.get(key) or 0)
    return max(sums.values(), default=0)


def _phase_cost(collectives: Sequence[Json], phase: str, step: Json) -> dict[str, Any]:
    """What communication cost per step of a phase, on the rank that spent most on it."""
    entries = [entry for entry in collectives if entry["phase"] == phase]
    seconds, sent = _most(entries, "seconds"), _most(entries, "bytes")
    count, measured = step.get("steps"), step.get("measured_seconds")
    parts = {f"{part}_per_step": found for part, found in _split(entries).items()}
    return {
        "bytes_per_step": sent / count if count else None,
        "seconds_per_step": seconds / count if count else None,
        "share": seconds / measured if measured else None,
        **{name: None if not count or s is None else s / count for name, s in parts.items()},
    }


def _split(entries: Iterable[Json]) -> dict[str, float | None]:
    """The parts of the seconds of the rank that has most; None where they weren't taken."""
    ranks: dict[int, list[Json]] = {}
    for entry in entries:
        ranks.setdefault(entry["rank"], []).append(entry)
    own = max(ranks.values(), key=lambda e: sum(entry["seconds"] for entry in e), default=[])
    found: dict[str, float | None] = {}
    for part in SPLITS:
        known = [entry[part] for entry in own if entry.get(part) is not None]
        found[part] = sum(known) if known else None
    return found


def relative_error(predicted: float | None, measured: float | None) -> float | None:
    """(predicted - measured) / measured; None where either is unknown or nothing was there."""
    if predicted is None or not measured:
        return None
    return (predicted - measured) / measured


def layout_name(entry: Json, dp: str | None = None) -> str:
    """The degrees of a plan or a rejected layout, in the command line's words."""
    dp = str(entry["dp"]) if dp is None else dp
    if stage_tp := entry.get("stage_tp"):
        return f"stage_tp=[{','.join(map(str, stage_tp))}] dp={dp}"
    return f"tp={entry['tp']} pp={entry['pp']} dp={dp}"


def summary_lines(report: Json) -> list[str]:
    """What the run proved, saved and cost: for the end of a log."""
    plan = report["plan"]
    lines = [
        _memory_line(report),
        _saved_line(layout_name(plan), report["saved"]),
    ]
    for phase, step in report["steps"].items():
        predicted, measured = step.get("predicted_seconds"), step.get("measured_seconds")
        if not measured:
            lines.append(f"{phase}: no step was run")
            continue
        line = f"{phase}: {format_seconds(measured)} in all"
        error = relative_error(predicted, measured)
        if error is not None:
            line += f", predicted {format_seconds(predicted)} ({error:+.0%})"
        if swapped := step.get("swapped_blocks"):
            took = format_seconds(step["predicted_swap_seconds"])
            line += f", {took} of it for {swapped} blocks swapped"
        lines.append(line + _cost(report["communication"][phase], phase))
    instrument = report["instrument"]
    if instrument["share"] is not None:
        took = format_seconds(instrument["seconds_per_step"])
        lines.append(f"instruments: {took} per step, {instrument['share']:.2%} of it")
    return lines


def _memory_line(report: Json) -> str:
    wrong, unknown = [], []
    for rank in report["ranks"]:
        for cause in EXACT:
            figures = rank["memory_bytes"][cause]
            if figures["measured"] is None:
                unknown.append(rank["rank"])
            elif figures["measured"] != figures["predicted"]:
                difference = figures["measured"] - figures["predicted"]
                wrong.append(f"rank {rank['rank']} {cause} {_signed(difference)}")
    if wrong:
        return f"memory differs from the plan: {', '.join(wrong)}"
    if unknown:
        ranks = ", ".join(str(rank) for rank in sorted(set(unknown)))
        return f"memory was not measured on rank {ranks}"
    return "weights and KV cache: as planned on every rank, to the byte"


def _saved_line(layout: str, saved: Json) -> str:
    whole = saved["one_rank_bytes"]
    if not whole:
        return f"{layout}: nothing to share"
    least = min(saved["ranks"], key=lambda rank: rank["bytes"])
    most = max(saved["ranks"], key=lambda rank: rank["bytes"])
    words = [f"{format_bytes(r['bytes'])} ({r['bytes'] / whole:.0%})" for r in (least, most)]
    text = " to ".join(dict.fromkeys(words))
    return f"{layout}: saves each rank {text} of the {format_bytes(whole)} that one rank would hold"


def _cost(cost: Json, phase: str) -> str:
    if cost["share"] is None:
        return ""
    text = f"; communication {cost['share']:.1%}"
    if cost["seconds_per_step"] is not None:
        per = "step, a token of each sequence" if phase == "decode" else "step"
        text += (
            f", {format_seconds(cost['seconds_per_step'])} and "
            f"{format_bytes(cost['bytes_per_step'])} per {per}"
        )
    if (wait := cost["wait_seconds_per_step"]) is not None:
        text += f", {format_seconds(wait)} of it waiting for late ranks"
    return text


def _signed(count: int) -> str:
    return ("+" if count >= 0 else "-") + format_bytes(abs(count))
