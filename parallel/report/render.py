"""Tables and lines on a console, the same on a terminal, in a file and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = 100


def make_console(file: TextIO | None = None) -> Console:
    """A console that prints words as they are: no markup, no colours of its own."""
    return Console(file=file, highlight=False, markup=False, emoji=False)


def make_table(headers: str, left: int, fold: int = 0, gap: int = 2) -> Table:
    """A table headed by `a|b|c`: its first `left` columns are text, `fold` of those, the last
    ones, may wrap; `gap` blanks (1 or 2) part the columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, gap - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for index, header in enumerate(headers.split("|")):
        wraps = left - fold <= index < left
        table.add_column(
            header,
            justify="left" if index < left else "right",
            no_wrap=not wraps,
            overflow="fold",
        )
    return table


def write_table(console: Console, table: Table) -> None:
    """Whole, whatever width a file or pipe is taken to have."""
    if console.is_terminal:
        console.print(table)
        return
    page = StringIO()
    Console(file=page, width=COLUMNS, color_system=None).print(table)
    console.print(Text(page.getvalue()), soft_wrap=True, end="")


def write_line(console: Console, text: str) -> None:
    """One line, however long: a log is searched by lines."""
    console.print(Text(text), soft_wrap=True)


def write_heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"), soft_wrap=True)


def write_more(console: Console, count: int, what: str) -> None:
    if count > 0:
        write_line(console, f"and {count} more {what}: the JSON form has them all")


def ranges(ranks: Iterable[int]) -> str:
    """`[0, 1, 2, 5] → '0-2,5'`."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
