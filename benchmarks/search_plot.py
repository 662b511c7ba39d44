"""Seconds and memory of the stage search against GPUs and against layers, as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.report.canvas import COLOURS, WIDTH, Canvas, Chart, picture_png, picture_svg

if TYPE_CHECKING:
    from benchmarks.search_scaling import Result

_HEIGHT = 220.0
_LINES = ((True, "blue", "layers alike"), (False, "orange", "layers that differ"))


def write_plot(results: Sequence[Result], path: Path) -> None:
    by_gpus = [r for r in results if r.layers == 126 and r.types == 3]
    by_layers = [r for r in results if r.gpus == 512 and r.types == 3]
    charts = [
        _chart("GPUs", "Against GPUs", "126 layers, 3 types of GPU.", by_gpus, lambda r: r.gpus),
        _chart("layers", "Against layers", "512 GPUs of 3 types.", by_layers, lambda r: r.layers),
    ]
    title, line = "The search for stages", "The fastest slowest stage, proven; plain Python."
    if path.suffix.lower() == ".png":
        path.write_bytes(picture_png(charts, title, line))
    else:
        path.write_text(picture_svg(charts, title, line), encoding="utf-8")


def _chart(
    name: str, title: str, note: str, results: Sequence[Result], size: Callable[[Result], int]
) -> Chart:
    """Seconds on the left, memory on the right."""
    half = WIDTH / 2 - 60

    def draw(canvas: Canvas, top: float) -> None:
        panels: tuple[tuple[str, Callable[[Result], float]], ...] = (
            ("seconds", lambda r: r.bottleneck_seconds),
            ("peak MiB", lambda r: r.peak_mib),
        )
        for number, (words, value) in enumerate(panels):
            left = 50 + number * (WIDTH / 2)
            canvas.text(left - 40, top + 8, words, 10.5, "muted")
            canvas.text(left + half, top + _HEIGHT + 60, name, 10.5, "muted", "right")
            axes = canvas.axes(left, top + 24, half, _HEIGHT)
            axes.grid(color=COLOURS["faint"], linewidth=0.8)
            for alike, colour, _ in _LINES:
                points = sorted((size(r), value(r)) for r in results if r.alike is alike)
                x, y = zip(*points, strict=True)
                axes.plot(x, y, "o-", color=COLOURS[colour], linewidth=1.6, markersize=5)
            axes.set_xscale("log", base=2)
            axes.set_xticks([x for x, _ in points], [str(x) for x, _ in points])
            axes.set_ylim(bottom=0)
        canvas.swatches(50, top + _HEIGHT + 84, [(colour, words) for _, colour, words in _LINES])

    return Chart(name, title, note, _HEIGHT + 96, draw)
