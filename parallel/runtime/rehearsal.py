"""Models of random weights, for what calibration rehearses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch._C._distributed_c10d import HashStore

from parallel.architecture.checkpoint import build_spec
from parallel.collectives.communicator import Communicator
from parallel.collectives.exchange import Exchange
from parallel.collectives.mesh import Mesh
from parallel.devices.base import Device
from parallel.hardware.facts import Cluster
from parallel.instrument.ledger import Ledger
from parallel.kernels.step import StepInput
from parallel.layout.degrees import AXES, Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import Plan, make_plan
from parallel.runtime.sequences import StepMessage
from parallel.runtime.worker import Worker

CONTEXT_TOKENS = 1040
SEQUENCES = 16
_MEMORY_GIB = 64.0
"""A bound for the plan alone: what is touched is a fraction of it."""


@dataclass(frozen=True)
class Geometry:
    """A layer's sizes, heads of 64 channels."""

    hidden: int
    heads: int
    kv_heads: int
    width: int

    @property
    def layer_bytes(self) -> int:
        """Of a layer's bf16 weights."""
        rows = 2 * (self.heads + self.kv_heads) * 64 + 3 * self.width
        return 2 * self.hidden * rows


class RandomWorker(Worker):
    """Its weights come from nowhere."""

    def load(self, advance: Callable[[int], None]) -> None:
        for target in self.weights.targets:
            target.view.uniform_(-0.02, 0.02)
        self._builder.pack()

    def inputs(self, message: StepMessage) -> StepInput:
        """The tensors of a step that isn't run."""
        self.sequences.states.clear()
        self.sequences.apply(message)
        return self._buffers[0].build(message.chunks, self.sequences)


def mesh_along(device: Device, along: Communicator | None = None) -> Mesh:
    """Beside the job's mesh: a rank on its own, or with others along one axis alone."""
    found = {axis: Communicator(axis, (0,), 0, None, Ledger(), device) for axis in AXES}
    degrees, index = Degrees(), 0
    if along is not None:
        found[along.axis] = along
        sizes = {axis: along.size if axis == along.axis else 1 for axis in AXES}
        degrees = Degrees(sizes["tp"], sizes["pp"], sizes["dp"])
        index = along.index
    return Mesh(degrees, index, device, found, Exchange(HashStore(), 0, 1))


def random_plan(
    geometry: Geometry,
    layers: int,
    vocabulary: int,
    degrees: Degrees,
    cluster: Cluster,
    step_tokens: int = 512,
) -> Plan:
    """A Llama of these sizes in bf16."""
    config = {
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": geometry.hidden,
        "intermediate_size": geometry.width,
        "num_hidden_layers": layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "head_dim": 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2 * CONTEXT_TOKENS,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    spec = build_spec(config, None, "rehearsal")
    return make_plan(
        Layout.make(spec, degrees),
        cluster,
        choose_formats(spec),
        EngineLimits(step_tokens, SEQUENCES, context_tokens=CONTEXT_TOKENS, prefix_cache=False),
        Workload(16, 16, 1),
        Budget(_MEMORY_GIB),
    )
