"""Requests with the same prompt (the n answers to one question): one computes it for all."""

from __future__ import annotations

from parallel.scheduling.sequence import Sequence


class Groups:
    """The running members of each group."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, bytes], list[Sequence]] = {}

    def started(self, s: Sequence) -> None:
        if s.group is not None:
            self._running.setdefault(s.group, []).append(s)

    def stopped(self, s: Sequence) -> None:
        if s.group is None:
            return
        members = self._running[s.group]
        members.remove(s)
        if not members:
            del self._running[s.group]

    def donor(self, s: Sequence) -> Sequence | None:
        """The member that `s` can share the prompt of: one that has computed it, else one to wait
        for. None: `s` computes it itself."""
        if s.group is None or s.host or len(s.tokens) > s.prompt:
            return None
        members = self._running.get(s.group)
        return max(members, key=gives_prompt) if members else None


def gives_prompt(donor: Sequence) -> bool:
    """All but the last token of its prompt is computed by batches that were made before."""
    return bool(donor.told) and donor.computed >= donor.prompt - 1
