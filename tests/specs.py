"""Small models and clusters for tests that touch no file: configs, specs, devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from parallel.architecture.checkpoint import build_spec
from parallel.architecture.families import FAMILIES
from parallel.architecture.spec import ModelSpec
from parallel.hardware.facts import Cluster, DeviceType, Link, Node
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.search import Planner
from parallel.units import GIB

Config = dict[str, Any]


def llama31_config(layers: int, hidden: int, heads: int, width: int) -> Config:
    """What Llama 3.1 publishes as config.json, at the given size."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def small_config(family: str = "llama", **changes: Any) -> Config:
    """A config of a few kilobytes' worth of weights; `changes` overrule it."""
    if family == "gpt2":
        base: Config = {
            "n_embd": 40,
            "n_head": 5,
            "n_layer": 3,
            "vocab_size": 53,
            "n_positions": 64,
        }
    else:
        base = {
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 53,
            "max_position_embeddings": 64,
        }
    return {"model_type": family, **base, **changes}


def small_spec(family: str = "llama", **changes: Any) -> ModelSpec:
    return build_spec(small_config(family, **changes), None, f"small-{family}")


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Specs of any family, with odd numbers of heads, columns and vocabulary rows."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    layers, vocabulary = draw(st.integers(1, 5)), draw(st.integers(16, 99))
    tied = draw(st.booleans())
    if family == "gpt2":
        heads = draw(st.integers(1, 8))
        return small_spec(
            family,
            n_embd=4 * heads,
            n_head=heads,
            n_layer=layers,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
        )
    kv_heads = draw(st.integers(1, 4))
    return small_spec(
        family,
        hidden_size=draw(st.integers(4, 40)),
        intermediate_size=draw(st.integers(16, 150)),
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * draw(st.integers(1, 4)),
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from((2, 4, 6))),
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )


def toy_device(memory_gib: float = 1.0, name: str = "toy", **changes: Any) -> DeviceType:
    """A device whose kernels start at once and that holds nothing but tensors."""
    facts: dict[str, Any] = {
        "kind": "cpu",
        "memory_bytes": int(memory_gib * GIB),
        "memory_bandwidth_bytes_per_second": 1e10,
        "flops_per_second": {"fp32": 1e12, "bf16": 2e12},
        "dollars_per_hour": 1.0,
    }
    return DeviceType(name=name, **{**facts, **changes})


def toy_cluster(*devices: DeviceType) -> Cluster:
    """One node whose devices send 1 GB/s to each other."""
    link = Link("shared_memory", 1e9, 1e-6)
    return Cluster("toys", (Node("box", devices, link, len(devices), 64 * GIB),))


BIG = small_spec(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=32003,
    max_position_embeddings=2048,
)
"""Some 200 million parameters, none of them anywhere."""


def toy_planner(
    spec: ModelSpec = BIG,
    devices: int = 4,
    memory_gib: float = 4.0,
    cluster: Cluster | None = None,
    **changes: Any,
) -> Planner:
    """Plans for toys whose whole memory is the budget; `changes` overrule the planner's facts."""
    planner = Planner(
        spec,
        cluster or toy_cluster(*[toy_device(memory_gib)] * devices),
        choose_formats(spec),
        EngineLimits(step_tokens=128, requests=8),
        Workload(input_tokens=100, output_tokens=28, concurrency=4),
        Budget(share=1.0),
    )
    return replace(planner, **changes)
