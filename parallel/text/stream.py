"""The text of one sequence as it grows, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from parallel.text.pieces import make_pieces
from parallel.text.tokenizer import Tokenizer


class StopFilter:
    """Holds back text that may be the start of a stop string. The string that is complete first
    wins, as if text came character by character; of two that end together, the longer."""

    def __init__(self, stops: Sequence[str]):
        self._stops = sorted({s for s in stops if s}, key=len, reverse=True)
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """The text that may go out; nothing more once `stopped` says which string was met."""
        if self.stopped is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        ends = [(at + len(s), s) for s in self._stops if (at := self._held.find(s)) >= 0]
        if ends:
            end, self.stopped = min(ends, key=lambda e: e[0])
            keep = end - len(self.stopped)
        else:
            keep = min(self._start_of(stop) for stop in self._stops)
        out, self._held = self._held[:keep], self._held[keep:]
        return out

    def flush(self) -> str:
        """What was held back, if no stop string was met."""
        out, self._held = self._held, ""
        return "" if self.stopped is not None else out

    def _start_of(self, stop: str) -> int:
        """Where a proper beginning of `stop` starts that ends the held text; else its length."""
        held = self._held
        at = held.find(stop[0], max(0, len(held) - len(stop) + 1))
        while at >= 0 and not stop.startswith(held[at:]):
            at = held.find(stop[0], at + 1)
        return at if at >= 0 else len(held)


class TextStream:
    """Tokens in, text out. `continues` when the text goes on from a prompt, so that a tokenizer
    that puts a space before the first word keeps it. `stopped` is the stop string met, or None."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), continues: bool = False):
        self._pieces = make_pieces(tokenizer, continues)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> str | None:
        return self._filter.stopped

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens make certain: no half characters, no part of a stop string."""
        return self._filter.push(self._pieces.push(ids))

    def flush(self) -> str:
        """The rest, at the end of the sequence."""
        return self._filter.push(self._pieces.flush()) + self._filter.flush()
