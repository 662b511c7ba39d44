"""Bars of parts side by side: memory and steps by cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from parallel.report.canvas import COLOURS, WIDTH, Canvas, Chart, text_width
from parallel.units import GIB, KIB, MIB, format_bytes, format_seconds

Kinds = Mapping[str, tuple[str, str]]
"""Of each part its colour, and what the reader calls it."""

_LEFT, _RIGHT, _BAR, _SPACE, _GAP, _HEAD, _FOOT = 200, 84, 15, 3, 10, 28, 24
_INNER = WIDTH - _LEFT - _RIGHT


@dataclass(frozen=True)
class Bar:
    """`parts` by name. `pale`: foretold, not measured. `heading` stands before the first bar of a
    group, `label` before each."""

    label: str
    parts: Mapping[str, float]
    pale: bool = False
    heading: str = ""

    @property
    def total(self) -> float:
        return sum(max(0.0, amount) for amount in self.parts.values())


Groups = Sequence[Sequence[Bar]]


@dataclass(frozen=True)
class Scale:
    """How amounts are written, and the unit that the axis counts in."""

    words: Callable[[float], str]
    unit: float
    unit_name: str

    @classmethod
    def bytes(cls, most: float) -> Scale:
        names = (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB))
        name, unit = next((pair for pair in names if most >= pair[1]), ("B", 1))
        return cls(format_bytes, unit, name)

    @classmethod
    def milliseconds(cls, most: float) -> Scale:
        names = (("s", 1e3), ("ms", 1.0), ("µs", 1e-3))
        name, unit = next((pair for pair in names if most >= pair[1]), ("ns", 1e-6))
        return cls(lambda ms: format_seconds(ms / 1e3), unit, name)


def memory_bars(
    name: str, title: str, note: str, groups: Groups, kinds: Kinds, budget: float
) -> Chart:
    """Bytes, and the budget as a line, or in words where it is far away."""
    most = _most(groups)
    near = budget <= 1.6 * most
    reach = max(most, budget) if near else most
    words = f"budget {format_bytes(budget)}" + ("" if near else ", beyond this scale")

    def mark(canvas: Canvas, axes: Axes, top: float) -> None:
        if not near:
            canvas.text(WIDTH, top - 9, f"{words} →", 10.5, "muted", "right")
            return
        axes.axvline(budget, color=COLOURS["ink"], linewidth=1.3, linestyle=(0, (4, 3)))
        place = _LEFT + _INNER * budget / (1.02 * reach)
        fits = place + text_width(words, 10.5) / 2 < WIDTH
        canvas.text(place, top - 9, words, 10.5, "ink", "center" if fits else "right")

    return _chart(name, title, note, groups, kinds, Scale.bytes(reach), reach, mark)


def time_bars(name: str, title: str, note: str, groups: Groups, kinds: Kinds) -> Chart:
    """Milliseconds."""
    most = _most(groups)
    return _chart(name, title, note, groups, kinds, Scale.milliseconds(most), most, None)


def _most(groups: Groups) -> float:
    return max((bar.total for group in groups for bar in group), default=0.0) or 1.0


def _chart(
    name: str,
    title: str,
    note: str,
    groups: Groups,
    kinds: Kinds,
    scale: Scale,
    reach: float,
    mark: Callable[[Canvas, Axes, float], None] | None,
) -> Chart:
    seen = reach / _INNER / 2
    used = {k: kinds[k] for k in kinds if any(b.parts.get(k, 0) > seen for g in groups for b in g)}
    rows = sum(len(group) for group in groups)
    inner = rows * (_BAR + _SPACE) + (len(groups) - 1) * _GAP
    head = _HEAD + (20 if mark is not None else 0)

    def draw(canvas: Canvas, top: float) -> None:
        canvas.swatches(0, top + 8, list(used.values()))
        top += head
        axes = canvas.axes(_LEFT, top, _INNER, inner)
        axes.set_xlim(0, 1.02 * reach / scale.unit)
        axes.set_ylim(inner, 0)
        axes.set_yticks([])
        axes.grid(axis="x", color=COLOURS["faint"], linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda v, _: f"{v:g} {scale.unit_name}" if v else "0")
        )
        y = 0.0
        for group in groups:
            for bar in group:
                _draw_bar(canvas, axes, bar, used, y, top, scale, reach)
                y += _BAR + _SPACE
            y += _GAP
        if mark is not None:
            _scaled_mark(canvas, axes, top, scale, mark)

    return Chart(name, title, note, head + inner + _FOOT, draw)


def _scaled_mark(
    canvas: Canvas,
    axes: Axes,
    top: float,
    scale: Scale,
    mark: Callable[[Canvas, Axes, float], None],
) -> None:
    """Marks are given in amounts: a twin of the axes counts in those."""
    twin = axes.twiny()
    twin.set_axis_off()
    low, high = axes.get_xlim()
    twin.set_xlim(low * scale.unit, high * scale.unit)
    mark(canvas, twin, top)


def _draw_bar(
    canvas: Canvas,
    axes: Axes,
    bar: Bar,
    kinds: Kinds,
    y: float,
    top: float,
    scale: Scale,
    reach: float,
) -> None:
    middle, start = y + _BAR / 2, 0.0
    pixel = 1.02 * reach / _INNER
    for kind, (colour, _) in kinds.items():
        amount = max(0.0, bar.parts.get(kind, 0.0))
        if not amount:
            continue
        width, left = max(0.3 * pixel, amount - pixel) / scale.unit, start / scale.unit
        if bar.pale:
            axes.barh(middle, width, _BAR, left, color=COLOURS["paper"], linewidth=0)
        fill = (COLOURS[colour], 0.45 if bar.pale else 1.0)
        axes.barh(middle, width, _BAR, left, color=fill, linewidth=0)
        start += amount
    if bar.heading:
        room = _LEFT - 24 - text_width(bar.label, 10.5)
        canvas.text(0, top + middle, _cut(bar.heading, room), 11, bold=True)
    canvas.text(_LEFT - 10, top + middle, bar.label, 10.5, "muted", "right")
    canvas.text(
        _LEFT + start / pixel + 6,
        top + middle,
        scale.words(bar.total),
        10.5,
        "muted" if bar.pale else "ink",
        bold=not bar.pale,
    )


def _cut(words: str, pixels: float) -> str:
    """As much as there is room for, in bold."""
    most = int(pixels / text_width("0", 12))
    return words if len(words) <= most else f"{words[: most - 1]}…"
