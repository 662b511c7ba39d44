"""One rank at work: its part of the model, its cache, and the steps that it is told to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from parallel.collectives.mesh import Mesh
from parallel.devices.base import Device
from parallel.instrument.ledger import Ledger
from parallel.kernels.block_moves import BlockMover
from parallel.kernels.cache import KVCache
from parallel.kernels.sampling import Choice, sample
from parallel.models.transformer import Transformer
from parallel.planner.graphs import GraphSize, graph_sizes, most_rows
from parallel.planner.plan import Plan
from parallel.runtime.graphs import DecodeGraphs, GraphShapes, in_place
from parallel.runtime.inputs import InputBuffers, Sizes
from parallel.runtime.sequences import Sequences, StepMessage
from parallel.runtime.tracing import Tracer
from parallel.sharding.builder import LayerBuilder
from parallel.sharding.loader import ShardReader
from parallel.sharding.weights import Weights


@dataclass(frozen=True)
class StepResult:
    """What the last stage sampled, by request id; empty elsewhere."""

    serial: int
    choices: dict[int, Choice]

    def to_wire(self) -> dict[str, Any]:
        rows = [(i, c.token, c.logprob, c.top) for i, c in self.choices.items()]
        return {"op": "result", "serial": self.serial, "choices": rows}

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> StepResult:
        rows = body["choices"]
        return cls(
            body["serial"],
            {i: Choice(t, lp, tuple((a, b) for a, b in top)) for i, t, lp, top in rows},
        )


def _nothing(_: int) -> None:
    return


class Worker:
    """Allocates what the plan says; `load` fills the weights, `run` executes a step, `after_step`
    hears its number."""

    def __init__(self, plan: Plan, rank: int, mesh: Mesh, device: Device, ledger: Ledger):
        self.plan, self.rank, self.mesh = plan, rank, mesh
        self.device, self.ledger = device, ledger
        layout = plan.layout
        self.stage = layout.stage(rank)
        self.compute = getattr(torch, plan.formats.compute.torch)
        self.weights = Weights(layout, rank, getattr(torch, plan.formats.weights.torch), device)
        cache_dtype = getattr(torch, plan.formats.kv_cache.torch)
        limits = plan.limits
        self._builder = LayerBuilder(
            self.weights,
            mesh.tp,
            limits.attention,
            cache_dtype,
            limits.block_tokens,
            plan.split_tokens,
        )
        self.model = Transformer(self._builder)
        blocks = plan.blocks + plan.spare_blocks(rank)
        self.cache = KVCache.allocate(
            layout, rank, blocks, limits.block_tokens, cache_dtype, device, self.compute
        )
        self.mover = BlockMover(self.cache, plan.swap_blocks, device)
        sizes = Sizes(
            tokens=limits.step_tokens,
            sequences=min(limits.requests, limits.step_tokens),
            blocks=-(-plan.context_tokens // limits.block_tokens),
            block_tokens=limits.block_tokens,
        )
        self._buffers = [InputBuffers(sizes, device) for _ in range(plan.batches)]
        self.graphs = self._make_graphs()
        self.sequences = Sequences()
        self.tracer = Tracer(device, ledger, mesh.tp)
        self.after_step: Callable[[int], None] = _nothing
        self.samples = self.stage.head and mesh.coordinates.tp == 0
        degrees, place = layout.degrees, mesh.pp.ranks.index
        sender = degrees.sender(rank)
        self._sender = None if sender is None else place(sender)
        self._receivers = [place(r) for r in degrees.receivers(rank)]
        self.bytes_read = 0

    @property
    def standing_bytes(self) -> int:
        """What is held all the time beside weights and cache."""
        buffers = sum(b.bytes for b in self._buffers)
        return buffers + self.model.constant_bytes + self.graphs.bytes

    def _make_graphs(self) -> DecodeGraphs:
        """Of this stage's decodes, still to be captured; of no sizes where there are to be none."""
        plan, limits = self.plan, self.plan.limits
        sizes: tuple[GraphSize, ...] = ()
        # A trace times every layer, which a graph doesn't let it do.
        if plan.spare_blocks(self.rank) and not self.ledger.spans.capacity:
            blocks = -(-plan.context_tokens // limits.block_tokens)
            sizes = graph_sizes(most_rows(limits, plan.batches), blocks, in_place(self.model))
        shapes = GraphShapes(sizes, plan.layout.spec.hidden, self.compute)
        return DecodeGraphs(
            self.model, self.cache, self._buffers, self.mesh.tp, self.device, shapes
        )

    def load(self, advance: Callable[[int], None]) -> None:
        """Reads this rank's slices; `advance` is told the bytes of each tensor as it is read."""
        reader = ShardReader()
        reader.fill(self.weights.targets, advance)
        self.bytes_read = reader.bytes_read
        self._builder.pack()

    def capture(self, advance: Callable[[int], None] = _nothing) -> None:
        """Captures the graphs of this stage's decodes, and calls `advance` after each. All ranks of
        a stage must do so at once."""
        for _ in self.graphs.capture(self.sequences):
            advance(1)

    def describe(self) -> list[str]:
        """What was chosen for this device, and why; nothing where there is no choice."""
        if self.device.kind != "cuda":
            return []
        forms = self._builder.attention_forms.items()
        lines = [f"attention: {form} ({reason})" for form, reason in forms]
        what = "norms, activations, rotary positions"
        why = self.device.uncompiled
        compiled = f"nothing ({why})" if why else what
        return [*lines, f"compiled: {compiled}", f"graphs: {self.graphs.describe()}"]

    @torch.inference_mode()
    def run(self, message: StepMessage) -> StepResult:
        """One step through this rank's stage; results come out on the rank that samples. With
        communication muted it isn't one of the ledger's steps."""
        if self.mesh.tp.muted:
            return self._run(message)
        self.device.keep_time()
        self.ledger.begin_step(message.phase)
        result = self.tracer.part("step", self._run, message)
        self.after_step(self.ledger.spans.step)
        return result

    def _run(self, message: StepMessage) -> StepResult:
        self.sequences.apply(message)
        if message.moves:
            self.mover.run(message.moves)
        out = self._compute(message)
        choices: dict[int, Choice] = {}
        if not self.stage.head:
            for receiver in self._receivers:
                self.mesh.pp.send(out, receiver, "stage")
        elif self.samples:
            sampled = [c.id for c in message.chunks if c.samples]
            if sampled:
                rows = [self.sequences[i].row for i in sampled]
                chosen = self.tracer.part("sampling", sample, out, rows)
                choices = dict(zip(sampled, chosen, strict=True))
        return StepResult(message.serial, choices)

    def _compute(self, message: StepMessage) -> torch.Tensor:
        """Logits [R, V] of the rows that are sampled, or the hidden states of a stage without."""
        place, chunks = message.serial % len(self._buffers), message.chunks
        size = None if self.mesh.tp.muted else self.graphs.size(chunks)
        if size is None:
            step = self._buffers[place].build(chunks, self.sequences)
            hidden = self.model(step, self.cache, self._receive(step.tokens))
            if not self.stage.head or not step.logit_rows.numel():
                return hidden
            return self.tracer.part("logits", self.model.logits, hidden, step)
        self._receive(len(chunks), self.graphs.received(len(chunks)))
        out = self.graphs.run(place, size, chunks, self.sequences)
        # What is sent is read until it has left; the next replay writes over it.
        return out if self.stage.head else out.clone()

    def _receive(self, tokens: int, hidden: torch.Tensor | None = None) -> torch.Tensor | None:
        if self._sender is None:
            return None
        if hidden is None:
            hidden = self.device.empty((tokens, self.plan.layout.spec.hidden), self.compute)
        self.mesh.pp.recv(hidden, self._sender, "stage")
        return hidden
