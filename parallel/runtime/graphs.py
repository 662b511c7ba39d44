"""Decode steps as graphs: a stage's forward pass is captured once for each size of a batch, and
replayed on the same addresses (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

A batch is filled up to the next size with rows of no sequence, which write to a block of the cache
that no sequence has. Input buffers stay where they are, so that a step is: fill them, replay, read
the result. Sends, receives and sampling stay outside; the tensor-parallel collectives are inside,
and all ranks of the axis replay the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from parallel.collectives.communicator import Communicator
from parallel.devices.base import Device, Graph
from parallel.errors import CaptureError
from parallel.instrument.ledger import Ledger
from parallel.kernels.attention_cuda import CudaAttention
from parallel.kernels.cache import KVCache
from parallel.kernels.step import StepInput
from parallel.models.transformer import Transformer
from parallel.planner.graphs import GraphSize
from parallel.requests.types import Sampling
from parallel.runtime.inputs import InputBuffers
from parallel.runtime.sequences import BlockTable, Chunk, Sequences, SequenceState
from parallel.units import format_bytes

_NOBODY = -1
"""The request id of rows without a sequence."""
_ROW = Chunk(_NOBODY, 0, 1, True)


@dataclass(frozen=True)
class Captured:
    """A graph, and the axis's calls in the run before it was captured."""

    graph: Graph
    counted: Ledger


class Filled(Sequences):
    """The rank's sequences, and nobody: one token at the start of the spare block."""

    def __init__(self, real: Sequences, spare_block: int):
        super().__init__()
        self.states = real.states
        self._nobody = SequenceState([0], 1, BlockTable([spare_block]), Sampling())

    def __getitem__(self, request_id: int) -> SequenceState:
        return self._nobody if request_id == _NOBODY else super().__getitem__(request_id)


@dataclass(frozen=True)
class GraphShapes:
    """The sizes to capture, none where there are to be no graphs; the width of hidden states and
    their format."""

    sizes: tuple[GraphSize, ...]
    hidden: int
    compute: torch.dtype

    @property
    def rows(self) -> int:
        return max((size.rows for size in self.sizes), default=0)


class Results:
    """The tensors that all graphs share: hidden states that came from the stage before (None where
    ids come), and what goes out: logits [rows, V] in float32, or hidden states [rows, h]."""

    def __init__(self, model: Transformer, shapes: GraphShapes, device: Device):
        hidden = (shapes.rows, shapes.hidden)
        stays = model.embedding is None
        self.received = device.zeros(hidden, shapes.compute) if stays else None
        if model.head is None:
            self.out = device.zeros(hidden, shapes.compute)
        else:
            self.out = device.zeros((shapes.rows, sum(model.head.sizes)), torch.float32)

    @property
    def bytes(self) -> int:
        return self.out.nbytes + (0 if self.received is None else self.received.nbytes)


class DecodeGraphs:
    """Graphs of one stage, for each set of input buffers; none until they are captured. `reason`
    says why there are none, `taken_bytes` what the device gave for them."""

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        buffers: Sequence[InputBuffers],
        axis: Communicator,
        device: Device,
        shapes: GraphShapes,
    ):
        self._model, self._cache, self._buffers = model, cache, buffers
        self._axis, self._device, self._shapes = axis, device, shapes
        self._sizes = sorted(shapes.sizes)
        self._captured: dict[tuple[int, GraphSize], Captured] = {}
        self._results: Results | None = None
        self._prepare = _preparing(model)
        self.reason = "" if self._sizes else "none were asked for"
        self.taken_bytes = 0

    def __len__(self) -> int:
        return len(self._captured)

    def describe(self) -> str:
        """One line: how many there are and what they took, or why there are none."""
        if not self._captured:
            return f"none ({self.reason})"
        rows = ", ".join(map(str, sorted({size.rows for size in self._sizes})))
        return f"{len(self)} for up to {rows} decodes, {format_bytes(self.taken_bytes)}"

    @property
    def results(self) -> Results:
        assert self._results is not None, "graphs are captured before they are used"
        return self._results

    @property
    def to_capture(self) -> int:
        return len(self._sizes) * len(self._buffers)

    def capture(self, sequences: Sequences) -> Iterator[None]:
        """Captures all sizes, and yields after each. All ranks of the axis do so at once, and go
        without graphs when one of them can't: their collectives must be captured on all or none.
        The largest comes first, so that the others find their memory in its pool."""
        if not self._sizes:
            return
        before = _device_bytes(self._device)
        self._results = Results(self._model, self._shapes, self._device)
        found, reason = {}, ""
        for size in reversed(self._sizes):
            for place in range(len(self._buffers)):
                made, why = self._capture_one(place, size, sequences)
                if made is not None:
                    found[place, size] = made
                reason = reason or why
                yield
        if not self._agreed(len(found)):
            reason = reason or "another rank of the axis could not"
            found, self._results = {}, None
        self._captured, self.reason = found, reason
        self.taken_bytes = _device_bytes(self._device) - before

    @torch.inference_mode()
    def _capture_one(
        self, place: int, size: GraphSize, sequences: Sequences
    ) -> tuple[Captured | None, str]:
        step = self._build(place, size, [], sequences)
        everything = (size.blocks * self._cache.block_tokens,) * size.rows
        step = replace(step, fixed=True, context_tokens=everything)
        with self._axis.counting_into(Ledger("decode")):
            # Libraries choose kernels and take workspaces in the first run.
            self._forward(replace(step, _shared={}))
        counted = Ledger("decode")
        with self._axis.counting_into(counted, timed=True):
            self._forward(replace(step, _shared={}))
        ready = replace(step, _shared={})
        self._prepare(ready)

        def forward() -> None:
            # What layers share is part of the graph, but for what was prepared on the host.
            self._forward(replace(ready, _shared=dict(ready._shared)))

        with self._axis.counting_into(Ledger("decode")):
            try:
                graph = self._device.capture(forward)
            except CaptureError as error:
                return None, str(error)
        if graph is None:
            return None, f"{self._device.name} has no graphs"
        return Captured(graph, counted), ""

    @torch.inference_mode()
    def _agreed(self, captured: int) -> bool:
        """Whether all ranks of the axis have all graphs."""
        mine = self._device.numbers([int(captured == self.to_capture)], torch.int64)
        with self._axis.counting_into(Ledger("load")):
            self._axis.all_reduce(mine, "captured")
        return int(mine) == self._axis.size

    def _forward(self, step: StepInput) -> None:
        rows, results = step.sequences, self.results
        hidden = None
        if results.received is not None:
            # The model writes over what it is given.
            hidden = results.received.narrow(0, 0, rows).clone()
        out = self._model(step, self._cache, hidden)
        if self._model.head is not None:
            out = self._model.logits(out, step)
        results.out.narrow(0, 0, rows).copy_(out)

    def size(self, chunks: Sequence[Chunk]) -> GraphSize | None:
        """The smallest size that has room for this batch; None if there is no graph for it."""
        if not self._captured or any(c.count > 1 or not c.samples for c in chunks):
            return None
        tokens = self._cache.block_tokens
        blocks = max(-(-(c.start + 1) // tokens) for c in chunks)
        fits = (s for s in self._sizes if s.rows >= len(chunks) and s.blocks >= blocks)
        return next(fits, None)

    def received(self, rows: int) -> torch.Tensor | None:
        """Where the hidden states [rows, h] of the stage before belong."""
        held = self.results.received
        return None if held is None else held.narrow(0, 0, rows)

    @property
    def bytes(self) -> int:
        """Of the tensors that stay."""
        return 0 if self._results is None else self._results.bytes

    def run(
        self, place: int, size: GraphSize, chunks: Sequence[Chunk], sequences: Sequences
    ) -> torch.Tensor:
        """Logits or hidden states of the batch, [rows, …]: valid until the next run."""
        captured = self._captured[place, size]
        step = replace(self._build(place, size, chunks, sequences), fixed=True)
        self._prepare(step)
        out = self.results.out.narrow(0, 0, size.rows)
        if self._axis.size > 1:
            self._axis.run_captured(captured.graph.replay, out, captured.counted)
        else:
            captured.graph.replay()
        return out.narrow(0, 0, len(chunks))

    def _build(
        self, place: int, size: GraphSize, chunks: Sequence[Chunk], sequences: Sequences
    ) -> StepInput:
        rows = [*chunks, *[_ROW] * (size.rows - len(chunks))]
        filled = Filled(sequences, self._cache.blocks - 1)
        return self._buffers[place].build(rows, filled, size.blocks)


def _device_bytes(device: Device) -> int:
    """All that is taken on the device: the allocator's pools, and what the driver has."""
    device.synchronize()
    return device.memory_statistics().reserved_bytes + device.context_bytes()


def in_place(model: Transformer) -> bool:
    """Whether all layers' attention reads the cache where it lies."""
    return all(
        isinstance(attend, CudaAttention) and attend.in_place
        for attend in (block.attention.attend for block in model.blocks)
    )


def _preparing(model: Transformer) -> Callable[[StepInput], None]:
    """What attention does on the host before a step."""
    attends = [block.attention.attend for block in model.blocks]

    def prepare(step: StepInput) -> None:
        for attend in attends:
            if isinstance(attend, CudaAttention):
                attend.prepare(step)

    return prepare
