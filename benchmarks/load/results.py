"""Turns of several systems on one load, compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load.machine import Machine
from benchmarks.load.measured import Measured, Spread, ratio
from benchmarks.load.running import Turn
from benchmarks.load.systems import OURS, THREADS
from parallel.architecture.tensors import read_tensors


@dataclass(frozen=True)
class Case:
    """One model under one load. `runs` are in the order of the turns; `communication` is the share
    of a decode step, from the reports of our own servers; `failures` hold the errors of those that
    can't run it."""

    model: str
    load: str
    clients: int
    weight_bytes: int
    runs: Mapping[str, Sequence[Measured]]
    communication: Mapping[str, float]
    failures: Mapping[str, str]

    @classmethod
    def of(
        cls,
        model: Path,
        load: str,
        clients: int,
        index: int,
        turns: Mapping[str, Sequence[Turn]],
        failures: Mapping[str, str],
    ) -> Case:
        """`index` is the load's place among those of a turn."""
        shares = {label: _communication_share(found) for label, found in turns.items()}
        return cls(
            model=model.name,
            load=load,
            clients=clients,
            weight_bytes=weight_bytes(model),
            runs={
                label: [turn.measured[index] for turn in found] for label, found in turns.items()
            },
            communication={label: share for label, share in shares.items() if share is not None},
            failures=failures,
        )

    def ratios(self) -> dict[tuple[str, str], Spread]:
        """Throughput of each layout of ours beside that of each peer."""
        rates = {label: [r.tokens_per_second for r in runs] for label, runs in self.runs.items()}
        return {(a, b): ratio(rates[a], rates[b]) for a, b in self._pairs()}

    def decode_ratios(self) -> dict[tuple[str, str], Spread]:
        """The same of decoding, for those pairs where it is known of every turn."""
        rates = {
            label: [r.decode_tokens_per_second for r in runs] for label, runs in self.runs.items()
        }
        known = {
            label: [rate for rate in found if rate is not None] for label, found in rates.items()
        }
        return {
            (a, b): ratio(known[a], known[b])
            for a, b in self._pairs()
            if None not in rates[a] and None not in rates[b]
        }

    def _pairs(self) -> list[tuple[str, str]]:
        ours = [label for label in self.runs if label.startswith(OURS)]
        return [(a, b) for a in ours for b in self.runs if b not in ours]

    def decode_tokens_per_second(self, label: str) -> Spread | None:
        """None where the clients of a turn never decoded all at once."""
        rates = [run.decode_tokens_per_second for run in self.runs[label]]
        known = [rate for rate in rates if rate is not None]
        return Spread.of(known) if len(known) == len(rates) else None

    def share_of_bandwidth(self, label: str, bytes_per_second: float) -> float | None:
        """A decode step reads the weights once, whatever the batch: how much of the memory's
        bandwidth that comes to."""
        rate = self.decode_tokens_per_second(label)
        if rate is None:
            return None
        return self.weight_bytes * rate.median / self.clients / bytes_per_second

    def to_json(self, bytes_per_second: float) -> dict[str, Any]:
        return {
            "model": self.model,
            "load": self.load,
            "clients": self.clients,
            "weight_bytes_per_step": self.weight_bytes,
            "systems": {
                label: {
                    "share_of_bandwidth": self.share_of_bandwidth(label, bytes_per_second),
                    "communication_share": self.communication.get(label),
                    "turns": [asdict(run) for run in runs],
                }
                for label, runs in self.runs.items()
            },
            "ratios": _named(self.ratios()),
            "decode_ratios": _named(self.decode_ratios()),
            "failures": dict(self.failures),
        }


def _named(ratios: Mapping[tuple[str, str], Spread]) -> dict[str, Any]:
    return {f"{a} / {b}": asdict(spread) for (a, b), spread in ratios.items()}


@dataclass(frozen=True)
class Results:
    machine: Machine
    cases: Sequence[Case]

    @property
    def bandwidth(self) -> float:
        """Bytes per second that all threads of a system can read."""
        return self.machine.read_bytes_per_second[THREADS]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.machine), "cases": [c.to_json(self.bandwidth) for c in self.cases]}


def weight_bytes(model: Path) -> int:
    """Read by one decode step: all weights, but of an embedding that isn't also the head only a
    row for each token, which is left out."""
    tied = json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    return sum(
        tensor.place.end - tensor.place.start
        for name, tensor in read_tensors(model).items()
        if tied or name != "model.embed_tokens.weight"
    )


def _communication_share(turns: Sequence[Turn]) -> float | None:
    """Of a decode step, over all loads of a turn; the median over the turns."""
    reports = [turn.report for turn in turns if turn.report is not None]
    found = [report["communication"]["decode"]["share"] for report in reports]
    return median(found) if found else None
