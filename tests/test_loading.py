"""What a rank reads and holds while loading, against its shard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parallel.architecture.checkpoint import load_spec
from parallel.devices.cpu import CpuDevice
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.sharding.loader import ShardReader
from parallel.sharding.weights import Weights
from tests.checkpoints import make_checkpoint
from tests.commands import ROOT


def load(path: Path, degrees: Degrees, rank: int, dtype: torch.dtype) -> tuple[Weights, int]:
    layout = Layout.make(load_spec(path, weights=True), degrees)
    weights = Weights(layout, rank, dtype, CpuDevice())
    for shard in layout.shards(rank):
        p = shard.parameter
        weights.take(p.role, p.layer, p.kind)
    reader = ShardReader()
    seen: list[int] = []
    reader.fill(weights.targets, seen.append)
    assert sum(seen) == reader.bytes_read
    return weights, reader.bytes_read


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "llama-5-heads-1-kv"])
@pytest.mark.parametrize("degrees", [Degrees(tp=3), Degrees(tp=2, pp=2)], ids=str)
def test_a_rank_reads_its_shard_and_no_more(name: str, degrees: Degrees, tmp_path: Path) -> None:
    path = make_checkpoint(name, tmp_path)
    layout = Layout.make(load_spec(path, weights=True), degrees)
    whole = (path / "model.safetensors").stat().st_size
    for rank in range(degrees.world_size):
        weights, read = load(path, degrees, rank, torch.float32)
        assert read == weights.bytes == layout.weight_elements(rank) * 4 < whole


def test_shards_hold_the_files_values(tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path)
    stored = load_file(path / "model.safetensors")
    fused = stored["transformer.h.1.attn.c_attn.weight"]
    parts = []
    for rank in range(2):
        weights, _ = load(path, Degrees(tp=2), rank, torch.float32)
        parts += [
            t.view for t in weights.targets if t.shard.parameter.name == "blocks.1.key.weight"
        ]
    assert torch.equal(torch.cat(parts), fused[:, 80:160].T)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_formats_are_kept_or_converted(
    stored: torch.dtype, asked: torch.dtype, tmp_path: Path
) -> None:
    path = make_checkpoint("qwen3", tmp_path, str(stored).removeprefix("torch."))
    tensors = load_file(path / "model.safetensors")
    weights, read = load(path, Degrees(), 0, asked)
    assert read == sum(t.nbytes for t in tensors.values())
    by_name = {t.shard.parameter.source.name: t.view for t in weights.targets}
    for name, tensor in tensors.items():
        assert torch.equal(by_name[name], tensor.to(asked)), name


def test_a_sharded_index_gives_the_same(tmp_path: Path) -> None:
    path = make_checkpoint("qwen3", tmp_path)
    tensors = load_file(path / "model.safetensors")
    before, _ = load(path, Degrees(tp=2), 1, torch.float32)
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({n: tensors[n] for n in held}, path / file)
    index = {"weight_map": {n: f for f, held in files.items() for n in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    after, _ = load(path, Degrees(tp=2), 1, torch.float32)
    for old, new in zip(before.targets, after.targets, strict=True):
        assert torch.equal(old.view, new.view)


PEAK = """
import json, resource, sys, torch
from pathlib import Path
from parallel.architecture.checkpoint import load_spec
from parallel.devices.cpu import CpuDevice
from parallel.devices.process import reset_peak_rss, status_bytes
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.sharding.loader import ShardReader
from parallel.sharding.weights import Weights

layout = Layout.make(load_spec(Path(sys.argv[1]), weights=True), Degrees(tp=4))
weights = Weights(layout, 2, torch.bfloat16, CpuDevice())
for s in layout.shards(2):
    weights.take(s.parameter.role, s.parameter.layer, s.parameter.kind)
torch.zeros(8, dtype=torch.float32).to(torch.bfloat16)
assert reset_peak_rss(), "this kernel doesn't let the peak be reset"
before = status_bytes("VmRSS")
ShardReader().fill(weights.targets, lambda _: None)
print(json.dumps([weights.bytes, status_bytes("VmHWM") - before]))
"""


def test_peak_memory_is_the_shard_and_one_tensor(tmp_path: Path) -> None:
    """A checkpoint of 200 MB on 4 ranks: the growth of resident memory while loading."""
    rows, hidden, layers = 16000, 1024, 4
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 4096,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "vocab_size": rows,
        "max_position_embeddings": 128,
        "dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load_spec(tmp_path)
    save_file(
        {p.source.name: torch.ones(p.shape, dtype=torch.bfloat16) for p in spec.parameters},
        tmp_path / "model.safetensors",
    )
    largest = max(p.elements for p in spec.parameters) * 2
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shard, growth = json.loads(done.stdout)
    assert shard < spec.elements * 2 / 3.5
    assert growth <= shard + largest + (4 << 20)
