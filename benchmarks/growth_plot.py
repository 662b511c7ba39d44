"""How cost grows, as one picture: measured, and what would be in proportion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.growth_fit import Axis, Quantity
from parallel.report.canvas import COLOURS, WIDTH, Canvas, Chart, picture_png, picture_svg

_HEIGHT = 230.0
_HUES = ("blue", "orange", "green", "sky")


def write_plot(axes: Sequence[Axis], line: str, path: Path) -> None:
    """`line` says on which machine."""
    charts = [_chart(axis) for axis in axes]
    title = "How cost grows"
    if path.suffix.lower() == ".png":
        path.write_bytes(picture_png(charts, title, line))
    else:
        path.write_text(picture_svg(charts, title, line), encoding="utf-8")


def _chart(axis: Axis) -> Chart:
    """Times on the left, memory on the right, both scales logarithmic."""
    panels = [[q for q in axis.quantities if q.unit == unit] for unit in ("ms", "MiB")]
    rows = max(map(len, panels))

    def draw(canvas: Canvas, top: float) -> None:
        for number, quantities in enumerate(panels):
            _panel(canvas, top, 50 + number * (WIDTH / 2), axis, quantities)

    note = f"{axis.note} Dashed: the growth that the work has, through the largest."
    return Chart(axis.name, f"Against {axis.name}", note, _HEIGHT + 64 + 18 * rows, draw)


def _panel(
    canvas: Canvas, top: float, left: float, axis: Axis, quantities: Sequence[Quantity]
) -> None:
    half = WIDTH / 2 - 60
    unit = quantities[0].unit
    canvas.text(left - 40, top + 8, unit, 10.5, "muted")
    canvas.text(left + half, top + _HEIGHT + 56, axis.name, 10.5, "muted", "right")
    axes = canvas.axes(left, top + 24, half, _HEIGHT)
    axes.grid(color=COLOURS["faint"], linewidth=0.8)
    last = axis.sizes[-1]
    for quantity, hue in zip(quantities, _HUES, strict=False):
        colour = COLOURS[hue]
        axes.plot(axis.sizes, quantity.values, "o-", color=colour, linewidth=1.6, markersize=4)
        bound = [quantity.values[-1] * (size / last) ** quantity.bound for size in axis.sizes]
        axes.plot(axis.sizes, bound, "--", color=colour, linewidth=0.9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(axis.sizes), [str(size) for size in axis.sizes])
    axes.minorticks_off()
    for row, (quantity, hue) in enumerate(zip(quantities, _HUES, strict=False)):
        words = f"{quantity.name}: power {axis.exponent(quantity).text()}"
        canvas.swatches(left, top + _HEIGHT + 74 + 18 * row, [(hue, words)])
