"""Points: layouts by latency and throughput, and predictions beside measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from parallel.report.canvas import COLOURS, WIDTH, Canvas, Chart, text_width
from parallel.report.labels import Box, Dot, place_labels
from parallel.units import GIB, KIB, MIB, format_seconds

BAND = 0.15
"""Errors up to this share lie in the shaded band."""
_SIZE = 10.5
_LOG_FROM = 6.0


@dataclass(frozen=True)
class LayoutPoint:
    """`price`: dollars per million tokens, None where unknown. `front`: no other layout is as good
    in everything. `chosen`: the one that will be, or was, run."""

    name: str
    ranks: int
    tpot_ms: float
    tokens_per_second: float
    price: float | None
    front: bool
    chosen: bool = False


def pareto_chart(name: str, title: str, points: Sequence[LayoutPoint]) -> Chart:
    """Larger is more ranks, darker is dearer; the front is ringed and named."""
    left, head, width, height = 60.0, 30.0, WIDTH - 90.0, 330.0
    prices = [p.price for p in points if p.price is not None]
    note = "Up and to the left is better. Larger: more ranks."
    if len(set(prices)) > 1 and len(prices) == len(points):
        note += " Darker: dearer per token."
    note += " Ringed: the Pareto front."

    def draw(canvas: Canvas, top: float) -> None:
        axes = canvas.axes(left, top + head, width, height)
        _scale(axes, "x", [p.tpot_ms for p in points], _time)
        _scale(axes, "y", [p.tokens_per_second for p in points], lambda v: f"{v:g}")
        axes.grid(color=COLOURS["faint"], linewidth=0.8)
        canvas.text(0, top + 10, "tokens per second", _SIZE, "muted")
        below = top + head + height + 34
        canvas.text(left + width, below, "time per output token", _SIZE, "muted", "right")
        x, y = zip(*_envelope(points), strict=True)
        axes.plot(x, y, color=COLOURS["blue"], linewidth=1.2, alpha=0.5, zorder=2)
        for point in points:
            _dot(axes, point, prices)
        _name(canvas, axes, points, Box(left - 20, top + 20, left + width + 30, below - 44))

    return Chart(name, title, note, head + height + 44, draw)


def _dot(axes: Axes, point: LayoutPoint, prices: Sequence[float]) -> None:
    shade = 0.75
    if len(set(prices)) > 1 and point.price is not None:
        cheapest, dearest = min(prices), max(prices)
        shade = 0.2 + 0.8 * (point.price - cheapest) / (dearest - cheapest)
    at = ([point.tpot_ms], [point.tokens_per_second], "o")
    size, order = 2 * _radius(point), 4 if point.front else 3
    axes.plot(*at, markersize=size, color=COLOURS["paper"], markeredgewidth=0, zorder=order)
    axes.plot(
        *at,
        markersize=size,
        markerfacecolor=(COLOURS["blue"], shade if point.front else 0.5 * shade),
        markeredgewidth=1.6 if point.front else 0.0,
        markeredgecolor=COLOURS["orange" if point.chosen else "ink"],
        zorder=order,
    )


def _radius(point: LayoutPoint) -> float:
    return 3.0 + 1.1 * sqrt(min(point.ranks, 128))


def _envelope(points: Sequence[LayoutPoint]) -> list[tuple[float, float]]:
    """Those that none beats in both latency and throughput, by latency."""
    best, line = 0.0, []
    for p in sorted(points, key=lambda p: (p.tpot_ms, -p.tokens_per_second)):
        if p.tokens_per_second > best:
            best = p.tokens_per_second
            line.append((p.tpot_ms, best))
    return line


def _name(canvas: Canvas, axes: Axes, points: Sequence[LayoutPoint], frame: Box) -> None:
    order = sorted(points, key=lambda p: (not p.chosen, not p.front, -p.tokens_per_second))
    few = len(points) <= 12
    dots = []
    for point in order:
        x, y = canvas.place(axes, point.tpot_ms, point.tokens_per_second)
        shown = point.name if point.front or point.chosen or few else ""
        dots.append(Dot(x, y, _radius(point), shown, text_width(shown, _SIZE)))
    bold = {point.name for point in points if point.chosen}
    for label in place_labels(dots, frame, _SIZE):
        canvas.text(label.x, label.y, label.name, _SIZE, "ink", label.align, label.name in bold)


# ------------------------------------------------------------------ predicted and measured


@dataclass(frozen=True)
class Pair:
    """Milliseconds or bytes, both above 0; `name` may be empty."""

    name: str
    predicted: float
    measured: float


def agreement_chart(
    name: str, title: str, times: Sequence[Pair], sizes: Sequence[Pair] = ()
) -> Chart:
    """Predicted across, measured up: on the diagonal they agree; the band is ±15 %."""
    unit, unit_name = _memory_unit(sizes)
    scaled = [Pair(p.name, p.predicted / unit, p.measured / unit) for p in sizes]
    panels = [
        (times, "time", _time),
        (scaled, "memory of the fullest rank", lambda v: f"{v:g} {unit_name}"),
    ]
    panels = [panel for panel in panels if panel[0]]
    side = 300.0

    def draw(canvas: Canvas, top: float) -> None:
        for index, (pairs, what, words) in enumerate(panels):
            left = 70.0 + index * (WIDTH + 20) / 2
            _panel(canvas, pairs, what, words, (left, top + 26, side, side))

    note = f"On the line they agree; the band is ±{BAND:.0%}. Above it: more than was foretold."
    return Chart(name, title, note, side + 66, draw)


def _memory_unit(sizes: Sequence[Pair]) -> tuple[float, str]:
    """What the axis counts in."""
    most = max((pair.measured for pair in sizes), default=0.0)
    units = ((1024.0 * GIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
    return next((unit for unit in units if most >= unit[0]), (1.0, "bytes"))


def _panel(
    canvas: Canvas,
    pairs: Sequence[Pair],
    what: str,
    words: Callable[[float], str],
    box: tuple[float, float, float, float],
) -> None:
    left, top, width, height = box
    axes = canvas.axes(*box)
    both = [value for pair in pairs for value in (pair.predicted, pair.measured)]
    low, high = min(both) / 1.6, max(both) * 1.6
    for axis in "xy":
        _scale(axes, axis, [low, high], words, logarithmic=True, pad=1.0)
    axes.grid(color=COLOURS["faint"], linewidth=0.8)
    ends = [low, high]
    axes.fill_between(
        ends,
        [e * (1 - BAND) for e in ends],
        [e * (1 + BAND) for e in ends],
        color=COLOURS["sky"],
        alpha=0.35,
        linewidth=0,
    )
    axes.plot(ends, ends, color=COLOURS["muted"], linewidth=1)
    canvas.text(left - 60, top - 14, f"{what}, measured", _SIZE, "muted")
    canvas.text(left + width, top + height + 32, "predicted", _SIZE, "muted", "right")
    dots = []
    for pair in pairs:
        axes.plot(
            [pair.predicted],
            [pair.measured],
            "o",
            markersize=8,
            color=COLOURS["blue"],
            markeredgecolor=COLOURS["paper"],
            markeredgewidth=1,
            zorder=3,
        )
        x, y = canvas.place(axes, pair.predicted, pair.measured)
        dots.append(Dot(x, y, 4, pair.name, text_width(pair.name, 10)))
    for label in place_labels(dots, Box(left, top, left + width + 20, top + height), 10):
        canvas.text(label.x, label.y, label.name, 10, "ink", label.align)


# -------------------------------------------------------------------------------- scales


def _time(ms: float) -> str:
    text = format_seconds(ms / 1e3)
    number, unit = text.split(" ")
    return f"{float(number):g} {unit}"


def _scale(
    axes: Axes,
    name: str,
    values: Sequence[float],
    words: Callable[[float], str],
    logarithmic: bool = False,
    pad: float = 1.12,
) -> None:
    """Linear from near the least on, or logarithmic where values span much."""
    low, high = min(values), max(values)
    if logarithmic or high > _LOG_FROM * low:
        ends = (low / pad**2, high * pad**2)
        decades = high / low
        subs = (1.0, 2.0, 5.0) if decades < 300 else (1.0,)
        locator: LogLocator | MaxNLocator = LogLocator(subs=subs, numticks=12)
        axes.set(**{f"{name}scale": "log"})
    else:
        margin = 0.12 * (high - low) or 0.2 * high
        ends = (low - margin, high + margin)
        locator = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    axes.set(**{f"{name}lim": ends})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
