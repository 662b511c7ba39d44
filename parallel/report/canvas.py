"""What charts are drawn on: a figure in pixels from its top left corner, a few named colours, and
SVG that follows the page's colours and fonts.

matplotlib comes in with this module; whoever makes no picture imports none of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDTH = 760
_DOTS = 72
_SHARPNESS = 2

COLOURS = {
    "ink": "#1c2128",
    "muted": "#59636e",
    "faint": "#dde2e8",
    "paper": "#fefefe",
    "blue": "#2f6db5",
    "sky": "#8dbbe6",
    "green": "#2a9d7f",
    "orange": "#dd7a12",
    "yellow": "#f0c44c",
    "grey": "#9ba6b2",
}
"""On light ground. They differ in lightness as well as in hue, so that the colour-blind can tell
them apart."""
DARK = {
    "ink": "#e6edf3",
    "muted": "#9aa4af",
    "faint": "#30363d",
    "paper": "#0f1318",
    "blue": "#5b9be0",
    "sky": "#a9d0f5",
    "green": "#4fc3a1",
    "orange": "#f0963c",
    "yellow": "#f5d77a",
    "grey": "#7d8894",
}
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "chart",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.linewidth": 0.0,
}


class Canvas:
    """`WIDTH` pixels wide and a margin on both sides. Places are pixels from margin and top."""

    def __init__(self, height: float, margin: float = 0):
        self.height, self.margin = height, margin
        self.width = WIDTH + 2 * margin
        self.figure = Figure(figsize=(self.width / _DOTS, height / _DOTS), dpi=_DOTS)
        self.figure.patch.set_facecolor(COLOURS["paper"])

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Without a frame; light lines across for the values of x."""
        bottom = self.height - top - height
        box = (
            (left + self.margin) / self.width,
            bottom / self.height,
            width / self.width,
            height / self.height,
        )
        axes = self.figure.add_axes(box)
        axes.patch.set_alpha(0)
        axes.tick_params(length=0, labelsize=10, labelcolor=COLOURS["muted"], pad=5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_axisbelow(True)
        return axes

    def place(self, axes: Axes, x: float, y: float) -> tuple[float, float]:
        """Where a point of the axes' data lies, in pixels."""
        across, up = self.figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
        return float(across) * self.width - self.margin, (1 - float(up)) * self.height

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 11,
        colour: str = "ink",
        align: str = "left",
        bold: bool = False,
    ) -> None:
        """`y` is the middle of the line."""
        self.figure.text(
            (x + self.margin) / self.width,
            1 - y / self.height,
            words,
            fontsize=size,
            color=COLOURS[colour],
            ha=align,
            va="center_baseline",
            fontweight="bold" if bold else "normal",
        )

    def swatches(self, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
        """A line of colours with their names."""
        for colour, name in entries:
            self.figure.add_artist(
                Rectangle(
                    ((x + self.margin) / self.width, 1 - (y + 5) / self.height),
                    10 / self.width,
                    10 / self.height,
                    color=COLOURS[colour],
                    linewidth=0,
                )
            )
            self.text(x + 15, y, name, size=10.5, colour="muted")
            x += 15 + text_width(name, 10.5) + 18


@dataclass(frozen=True)
class Chart:
    """`draw(canvas, top)` fills `height` pixels below `top`. `name` is unique on a page."""

    name: str
    title: str
    note: str
    height: float
    draw: Callable[[Canvas, float], None]


def text_width(words: str, size: float) -> float:
    """About how many pixels a line takes."""
    return 0.58 * size * len(words)


def chart_svg(chart: Chart) -> str:
    """To stand within a page, in its width; colours are its variables `--ink`, `--blue`, …."""
    with rc_context({**_RC, "svg.hashsalt": chart.name}):
        canvas = Canvas(chart.height)
        canvas.figure.patch.set_alpha(0)
        chart.draw(canvas, 0)
        return _svg(canvas, chart.title)


def picture_svg(charts: Sequence[Chart], heading: str, line: str) -> str:
    """To stand alone: light or dark as its reader's screen is."""
    with rc_context(_RC):
        svg = _svg(_stacked(charts, heading, line), heading)
    style = f"svg {{ {variables(COLOURS)} }} @media (prefers-color-scheme: dark) {{ svg {{ "
    style = f"<style>{style}{variables(DARK)} }} }} text {{ font-family: {FONTS} }}</style>"
    head, rest = svg.split(">", 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>{style}{rest}'


def picture_png(charts: Sequence[Chart], heading: str, line: str) -> bytes:
    with rc_context(_RC):
        canvas = _stacked(charts, heading, line)
        file = BytesIO()
        canvas.figure.savefig(
            file, format="png", dpi=_DOTS * _SHARPNESS, metadata={"Software": None}
        )
        return file.getvalue()


def variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def _stacked(charts: Sequence[Chart], heading: str, line: str) -> Canvas:
    canvas = Canvas(96 + sum(chart.height + 88 for chart in charts), margin=28)
    canvas.text(0, 36, heading, size=17, bold=True)
    canvas.text(0, 62, line, size=11, colour="muted")
    top = 96.0
    for chart in charts:
        canvas.text(0, top + 14, chart.title, size=13, bold=True)
        canvas.text(0, top + 34, chart.note, size=10.5, colour="muted")
        chart.draw(canvas, top + 54)
        top += chart.height + 88
    return canvas


def _svg(canvas: Canvas, title: str) -> str:
    file = StringIO()
    canvas.figure.savefig(
        file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{name})")
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.S)
    used = set(re.findall(r"#([\w-]+)\b", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;\"]+", _font, svg)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    name = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _font(match: re.Match[str]) -> str:
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}px{weight}"
