"""Seconds and bytes of each layer of a model on a group of devices, as the stage search wants them.

Seconds are differences of steps: what a step takes longer with one more layer of a kind, and with
rows to sample. So they follow timing.py, whatever it counts. What a step costs once for the whole
pipeline is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallel.architecture.spec import Block, ModelSpec, Parameter, Role
from parallel.hardware.facts import Cluster, Node
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.limits import EngineLimits, Workload
from parallel.planner.memory import kv_bytes_per_token, weight_bytes
from parallel.planner.timing import StepModel
from parallel.planner.work import StepWork

_EMBEDDINGS = (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING)


@dataclass(frozen=True)
class ModelCosts:
    """The costs of one model in given formats; `heads` as in a layout."""

    spec: ModelSpec
    formats: Formats
    heads: str = "auto"

    def seconds(
        self, cluster: Cluster, ranks: Sequence[int], work: Sequence[tuple[StepWork, float]]
    ) -> tuple[float, ...]:
        """Of each layer on `ranks` together, the head with the last one: `work` by its weights."""
        part = only(cluster, ranks)
        known: dict[Block, float] = {}
        for block in self.spec.blocks:
            if block not in known:
                two = self._steps(part, (block, block), work)
                known[block] = max(0.0, two - self._steps(part, (block,), work))
        last = self.spec.blocks[-1]
        unsampled = [(replace(w, rows=0), weight) for w, weight in work]
        head = self._steps(part, (last,), work) - self._steps(part, (last,), unsampled)
        seconds = [known[block] for block in self.spec.blocks]
        seconds[-1] += max(0.0, head)
        return tuple(seconds)

    def _steps(
        self, part: Cluster, blocks: tuple[Block, ...], work: Sequence[tuple[StepWork, float]]
    ) -> float:
        layout = self._alone(blocks, (), part.device_count)
        model = StepModel(layout, part, self.formats)
        return sum(weight * model.step(w).seconds for w, weight in work)

    def _alone(self, blocks: tuple[Block, ...], parameters: Sequence[Parameter], tp: int) -> Layout:
        """A model of these blocks and parameters as one stage."""
        spec = replace(self.spec, blocks=blocks, parameters=tuple(parameters))
        return Layout.make(spec, Degrees(tp=tp), heads=self.heads)

    def item_bytes(self, tp: int, tokens: int) -> tuple[int, ...]:
        """Of each layer on the rank of `tp` that holds most of it: weights and a cache of `tokens`,
        the embedding with the first layer and the head with the last one."""
        layers: list[list[Parameter]] = [[] for _ in self.spec.blocks]
        for p in self.spec.parameters:
            if p.layer is not None:
                layers[p.layer].append(replace(p, layer=0))
        known: dict[object, int] = {}
        held = []
        for block, parameters in zip(self.spec.blocks, layers, strict=True):
            key = (block, tuple((p.role, p.kind, p.shape) for p in parameters))
            if key not in known:
                layout = self._alone((block,), parameters, tp)
                cache = [tokens * kv_bytes_per_token(layout, r, self.formats) for r in range(tp)]
                known[key] = max(
                    weight_bytes(layout, r, self.formats) + cache[r] for r in range(tp)
                )
            held.append(known[key])
        ends = [p for p in self.spec.parameters if p.layer is None]
        held[0] += self._end_bytes([p for p in ends if p.role in _EMBEDDINGS], tp)
        held[-1] += self._end_bytes([p for p in ends if p.role not in _EMBEDDINGS], tp)
        if self.spec.tied_head:
            held[-1] += self.shared_bytes(tp)
        return tuple(held)

    def shared_bytes(self, tp: int) -> int:
        """Of a tied table: a stage with both ends has it once."""
        tables = [p for p in self.spec.parameters if p.role is Role.TOKEN_EMBEDDING]
        return self._end_bytes(tables, tp) if self.spec.tied_head else 0

    def _end_bytes(self, parameters: Sequence[Parameter], tp: int) -> int:
        layout = self._alone(self.spec.blocks[:1], parameters, tp)
        return max(weight_bytes(layout, r, self.formats) for r in range(tp))


def only(cluster: Cluster, ranks: Sequence[int]) -> Cluster:
    """The devices of `ranks` alone, on their links."""
    nodes: list[Node] = []
    for number, node in enumerate(cluster.nodes):
        here = [cluster.device(r).type for r in ranks if cluster.device(r).node == number]
        if here:
            nodes.append(replace(node, devices=tuple(here)))
    return replace(cluster, nodes=tuple(nodes))


def served_work(
    workload: Workload, limits: EngineLimits, dp: int, batches: int
) -> list[tuple[StepWork, float]]:
    """One step of a full pipeline: a decode of its share of the requests, and the part of a prompt
    that comes with it in the mean."""
    here = min(-(-workload.concurrency // dp), limits.requests)
    batch = -(-here // batches)
    context = workload.input_tokens + workload.output_tokens // 2
    chunk = min(workload.input_tokens, limits.step_tokens)
    prompts = batch / workload.output_tokens * workload.input_tokens / chunk
    return [
        (StepWork.decode(batch, batch * context), 1.0),
        (StepWork.prompt(chunk, (workload.input_tokens - chunk) // 2), prompts),
    ]
