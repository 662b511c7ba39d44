"""What a page says beside its charts, and figures as it writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallel.report.report import CAUSES, layout_name
from parallel.units import format_bytes, format_seconds

Json = Mapping[str, Any]
MEMORY_CAUSES = tuple(cause for cause in CAUSES if cause not in ("peak_tensors", "total"))


@dataclass(frozen=True)
class Headline:
    """One figure in large type."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class PageTable:
    """The first column is text; all are, where `words`. `chosen`: a row to stand out."""

    title: str
    note: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    chosen: int | None = None


@dataclass(frozen=True)
class View:
    title: str
    eyebrow: str
    verdict: str
    reasons: Sequence[str]
    headlines: Sequence[Headline]
    tables: Sequence[PageTable]
    facts: Sequence[tuple[str, str]]


def short_name(plan: Json) -> str:
    """A layout's axes, those of one rank left out."""
    return shortened(layout_name(plan))


def shortened(name: str) -> str:
    words = [word for word in name.split() if not word.endswith("=1")]
    return " ".join(words) or "one rank"


def known(figure: Json) -> Any:
    return figure["predicted"] if figure["measured"] is None else figure["measured"]


def figure(figure: Json, shown: Callable[[float | None], str]) -> tuple[str, str, str]:
    return shown(figure["predicted"]), shown(figure["measured"]), percent(figure["error"])


def ms(value: float | None) -> str:
    return "-" if value is None else format_seconds(value / 1e3)


def plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def size(value: float | None) -> str:
    return "-" if value is None else format_bytes(value)


def price(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def percent(error: float | None) -> str:
    return "-" if error is None else f"{error:+.1%}"


def share(part: float | None, whole: float | None) -> str:
    return "-" if part is None or not whole else f"{part / whole:.1%}"
