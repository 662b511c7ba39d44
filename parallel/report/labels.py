"""Where the names of points go, so that none lies on another or on a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LINE = 1.25


@dataclass(frozen=True)
class Box:
    """Pixels: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, frame: Box) -> bool:
        return (
            frame.left <= self.left
            and frame.top <= self.top
            and self.right <= frame.right
            and self.bottom <= frame.bottom
        )


@dataclass(frozen=True)
class Dot:
    """A point with its radius, and a name if it wants one; `width` pixels wide as written."""

    x: float
    y: float
    radius: float
    name: str = ""
    width: float = 0.0

    @property
    def box(self) -> Box:
        r = self.radius
        return Box(self.x - r, self.y - r, self.x + r, self.y + r)


@dataclass(frozen=True)
class Label:
    """`x` is where the text starts, or ends when `align` is right; `y` its middle."""

    x: float
    y: float
    align: str
    name: str


def place_labels(dots: Sequence[Dot], frame: Box, size: float) -> list[Label]:
    """Names in the order of their dots: those first that matter most. What finds no free place
    near its dot stays unnamed. `size` is the height of the letters."""
    taken = [dot.box for dot in dots]
    labels = []
    for dot in dots:
        if not dot.name:
            continue
        for x, y, align in _places(dot, size):
            left = x if align == "left" else x - dot.width
            box = Box(left, y - size * _LINE / 2, left + dot.width, y + size * _LINE / 2)
            if box.inside(frame) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                labels.append(Label(x, y, align, dot.name))
                break
    return labels


def _places(dot: Dot, size: float) -> list[tuple[float, float, str]]:
    """Right, left, then above and below, near before far."""
    side, step = dot.radius + 4, dot.radius + size * 0.7
    places = [(dot.x + side, dot.y, "left"), (dot.x - side, dot.y, "right")]
    for far in (1.0, 1.7):
        for up in (-1, 1):
            places.append((dot.x + 2, dot.y + up * far * step, "left"))
            places.append((dot.x - 2, dot.y + up * far * step, "right"))
            places.append((dot.x - dot.width / 2, dot.y + up * far * step, "left"))
    return places
