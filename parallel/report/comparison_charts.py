"""Charts of a sweep: the two rates that users and owners look at, and memory against time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from parallel.report.canvas import COLOURS, WIDTH, Canvas, Chart, text_width
from parallel.report.comparison import Comparison, Entry
from parallel.report.labels import Box, Dot, place_labels
from parallel.units import GIB, MIB

_SIZE = 10.5
_RADIUS = 5.0


def comparison_charts(found: Comparison) -> list[Chart]:
    entries = found.entries
    if not entries:
        return []
    unit, name = (GIB, "GiB") if max(e.saved_bytes for e in entries) >= GIB else (MIB, "MiB")
    return [
        _points(
            "rates",
            "What a user gets, and what a device gives",
            "Up and to the right is better. Ringed: the Pareto front.",
            ("tokens per second, each user", lambda e: e.user_rate),
            ("tokens per second, each device", lambda e: e.device_rate),
            entries,
        ),
        _points(
            "saved",
            "Memory saved, and the time that it costs",
            "Up and to the left is better: against the smallest layout that fits.",
            ("ms added to each token", lambda e: e.added_ms),
            (f"{name} saved on each rank", lambda e: e.saved_bytes / unit),
            entries,
        ),
    ]


_Axis = tuple[str, Callable[[Entry], float]]


def _points(
    name: str, title: str, note: str, across: _Axis, up: _Axis, entries: Sequence[Entry]
) -> Chart:
    left, head, width, height = 60.0, 30.0, WIDTH - 90.0, 280.0

    def draw(canvas: Canvas, top: float) -> None:
        axes = canvas.axes(left, top + head, width, height)
        places = [(across[1](e), up[1](e)) for e in entries]
        _limits(axes, places)
        axes.grid(color=COLOURS["faint"], linewidth=0.8)
        canvas.text(0, top + 10, up[0], _SIZE, "muted")
        canvas.text(left + width, top + head + height + 34, across[0], _SIZE, "muted", "right")
        for entry, (x, y) in zip(entries, places, strict=True):
            axes.plot(
                [x],
                [y],
                "o",
                markersize=2 * _RADIUS,
                color=COLOURS["blue"],
                markeredgecolor=COLOURS["orange" if entry.pareto else "paper"],
                markeredgewidth=1.6,
                zorder=3,
            )
        dots = [
            Dot(*canvas.place(axes, x, y), _RADIUS, e.name, text_width(e.name, _SIZE))
            for e, (x, y) in zip(entries, places, strict=True)
        ]
        frame = Box(left - 20, top + 20, left + width + 30, top + head + height)
        for label in place_labels(dots, frame, _SIZE):
            canvas.text(label.x, label.y, label.name, _SIZE, "ink", label.align)

    return Chart(name, title, note, head + height + 44, draw)


def _limits(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    """From zero, so that twice as far is twice as much."""
    for axis, values in zip("xy", zip(*places, strict=True), strict=True):
        low, high = min(0.0, *values), max(values)
        room = 0.12 * (high - low) or 1.0
        axes.set(**{f"{axis}lim": (low - (room if low < 0 else 0.0), high + room)})
