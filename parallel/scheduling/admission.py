"""Which waiting sequences start: the watermark, and who shares what with whom."""

from __future__ import annotations

from parallel.scheduling.groups import Groups, gives_prompt
from parallel.scheduling.queue import WaitingQueue
from parallel.scheduling.sequence import Sequence, Stage
from parallel.scheduling.tables import BlockTables


class Admission:
    """In the queue's order; whoever waits for room isn't overtaken.

    A sequence starts if the free blocks hold its known tokens, those of running sequences that
    aren't computed yet, and one block more for each running sequence, itself included: so nobody
    is preempted in the `block_tokens` steps after it. Alone it always starts. Later answers to a
    prompt that is being computed wait for it, and are overtaken meanwhile.
    """

    def __init__(self, tables: BlockTables, places: int):
        self.tables, self.places = tables, places
        self.waiting = WaitingQueue()
        self.running: dict[int, Sequence] = {}
        """Most senior first."""
        self.groups = Groups()
        self._stuck: tuple[Sequence | None, int] = (None, 0)

    def admit(self) -> None:
        """Starts whom it can: they run, and have the blocks that they begin with."""
        index = 0
        while index < len(self.waiting) and len(self.running) < self.places:
            s = self.waiting[index]
            if s.awaited:
                break
            donor = self.groups.donor(s)
            if donor is not None and not gives_prompt(donor):
                index += 1
                continue
            if not self._start(s, donor):
                break

    def _start(self, s: Sequence, donor: Sequence | None) -> bool:
        tables = self.tables
        alone = not len(self.running)
        spare = tables.blocks.free - tables.promised - len(self.running) - 1
        if self._stuck[0] is s and spare <= self._stuck[1] and not alone:
            return False
        begin = tables.cached(s) if donor is None else tables.donated(s, donor)
        if not alone and tables.taken(s, begin) > spare:
            self._stuck = (s, spare)
            return False
        self._stuck = (None, 0)
        self.waiting.remove(s)
        if donor is not None:
            tables.lend(donor)
        tables.start(s, begin)
        self._run(s)
        return True

    def _run(self, s: Sequence) -> None:
        behind = self.running and self.last.seniority > s.seniority
        s.stage = Stage.RUNNING
        self.running[s.id] = s
        self.groups.started(s)
        if behind:
            order = sorted(self.running.values(), key=lambda other: other.seniority)
            self.running = {other.id: other for other in order}

    @property
    def last(self) -> Sequence:
        """The most junior that runs: whoever is preempted next."""
        return next(reversed(self.running.values()))

    def stop(self, s: Sequence, stage: Stage) -> None:
        """`s` neither runs nor waits any more; to wait again is `Stage.WAITING`."""
        if s.stage is Stage.RUNNING:
            del self.running[s.id]
            self.groups.stopped(s)
        else:
            self.waiting.remove(s)
        s.stage = stage
        if stage is Stage.WAITING:
            self.waiting.add(s)
