"""GGUF → Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quant
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from parallel.architecture.checkpoint import load_spec
from parallel.conversion.bfloat16 import to_bfloat16
from parallel.conversion.gguf import convert_gguf
from parallel.errors import CheckpointError
from tests.gguf_files import (
    CORPUS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    TEMPLATE,
    TOKENIZER,
    VOCABULARY,
    Small,
    convert_small,
    llama_cpp_permute,
    random_tensors,
    write_gguf,
)


def bfloat16(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).bfloat16()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return convert_small(tmp_path_factory.mktemp("small"))


def test_weights_and_logits_survive(small: Small) -> None:
    model, directory = small.model, small.directory
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    expected = dict(model.named_parameters())
    stored = load_file(directory / "model.safetensors")
    assert stored.keys() == expected.keys()
    for name, weight in stored.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight.float(), expected[name]), name
    tokens = torch.tensor([[1, 5, 9, 40, 7, 7, 2]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_directory_is_a_model_like_any_other(small: Small) -> None:
    spec = load_spec(small.directory, weights=True)
    assert (spec.layers, spec.hidden, spec.vocabulary) == (LAYERS, HIDDEN, VOCABULARY)
    assert spec.tied_head and spec.eos_token_ids == (2,) and spec.bos_token_id == 1
    attention = spec.blocks[0].attention
    assert attention.rotary is not None and attention.rotary.theta == 5000.0
    assert spec.blocks[0].norm.epsilon == 1e-5


@pytest.mark.parametrize("text", [*CORPUS, "x 007 ½\t<s>cat</s> \r\n ́é", "", "   "])
def test_tokenizer_survives(small: Small, text: str) -> None:
    converted = Tokenizer.from_file(str(small.directory / "tokenizer.json"))
    ids = converted.encode(text).ids
    assert ids == TOKENIZER.encode(text).ids
    assert converted.decode(ids, skip_special_tokens=False) == text


def test_chat_template_and_special_tokens(small: Small) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small.directory)
    chat = [{"role": "user", "content": "cat"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>cat</s>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<u>")
    assert (small.directory / "chat_template.jinja").read_text() == TEMPLATE
    ids = tokenizer("<s>cat</s>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "cat"


def test_quantised_tensors_become_what_they_stand_for(tmp_path: Path) -> None:
    tensors = random_tensors()
    quants = {"token_embd.weight": Quant.Q8_0}
    quants |= {n: Quant.Q4_1 for n in tensors if ".attn_" in n and "norm" not in n}
    quants |= {n: Quant.Q8_0 for n in tensors if ".ffn_" in n and "norm" not in n}
    convert_gguf(write_gguf(tmp_path / "q.gguf", tensors, quants), tmp_path, progress=False)
    stored = load_file(tmp_path / "model.safetensors")

    def meant(name: str) -> np.ndarray:
        return gguf.dequantize(gguf.quantize(tensors[name], quants[name]), quants[name])

    first = "model.layers.1"
    assert torch.equal(stored["model.embed_tokens.weight"], bfloat16(meant("token_embd.weight")))
    value = stored[f"{first}.self_attn.v_proj.weight"]
    assert torch.equal(value, bfloat16(meant("blk.1.attn_v.weight")))
    down = stored[f"{first}.mlp.down_proj.weight"]
    assert torch.equal(down, bfloat16(meant("blk.1.ffn_down.weight")))
    for letter, heads in (("q", HEADS), ("k", KV_HEADS)):
        rows = stored[f"{first}.self_attn.{letter}_proj.weight"].float().numpy()
        permuted = llama_cpp_permute(rows, heads)
        assert torch.equal(bfloat16(permuted), bfloat16(meant(f"blk.1.attn_{letter}.weight")))


def test_qwen2_keeps_its_biases_and_row_order(tmp_path: Path) -> None:
    tensors = random_tensors(bias=True)
    path = write_gguf(tmp_path / "q.gguf", tensors, architecture="qwen2", pre="qwen2")
    convert_gguf(path, tmp_path, progress=False)
    stored = load_file(tmp_path / "model.safetensors")
    for kind in ("weight", "bias"):
        query = stored[f"model.layers.0.self_attn.q_proj.{kind}"]
        assert torch.equal(query, bfloat16(tensors[f"blk.0.attn_q.{kind}"]))
    spec = load_spec(tmp_path, weights=True)
    assert spec.family == "qwen2" and spec.blocks[0].attention.qkv_bias
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == "qwen2"


def llama3_factors(factor: float, dim: int, theta: float) -> np.ndarray:
    """As convert_hf_to_gguf.py writes them for Llama 3.1."""
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * theta ** (i / dim)
        smooth = (8192 / wavelength - 1) / 3
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def test_llama3_rope_scaling_is_found_again(tmp_path: Path) -> None:
    factors = llama3_factors(8.0, HEAD_DIM, 5000.0)
    tensors = random_tensors() | {"rope_freqs.weight": factors}
    convert_gguf(write_gguf(tmp_path / "a.gguf", tensors), tmp_path, progress=False)
    rotary = load_spec(tmp_path, weights=True).blocks[0].attention.rotary
    assert rotary is not None and rotary.scaling is not None
    assert (rotary.scaling.kind, rotary.scaling.factor) == ("llama3", 8.0)
    tensors["rope_freqs.weight"] = factors * np.linspace(1, 2, len(factors), dtype=np.float32)
    other = write_gguf(tmp_path / "b.gguf", tensors)
    with pytest.raises(CheckpointError, match="rope factors are not those of Llama 3"):
        convert_gguf(other, tmp_path, progress=False)


@given(st.lists(st.floats(width=32), min_size=1))
def test_bfloat16_rounds_as_torch(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    ours = torch.from_numpy(to_bfloat16(array).view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(array).bfloat16()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


def refused(path: Path, directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert_gguf(path, directory, progress=False)
    return str(caught.value)


def test_other_and_incomplete_files_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors()
    other = tmp_path / "x.gguf"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is not a GGUF file" in refused(other, tmp_path)
    assert "does not exist" in refused(tmp_path / "none.gguf", tmp_path)
    kind = write_gguf(tmp_path / "f.gguf", tensors, architecture="falcon")
    assert "'falcon' can't be converted; known: llama, qwen2, qwen3" in refused(kind, tmp_path)
    pre = write_gguf(tmp_path / "p.gguf", tensors, pre="tekken")
    assert "pre-tokenizer 'tekken' can't be converted" in refused(pre, tmp_path)
    alien = write_gguf(
        tmp_path / "a.gguf", tensors | {"blk.0.odd.weight": tensors["output_norm.weight"]}
    )
    assert "tensor 'blk.0.odd.weight' is not one" in refused(alien, tmp_path)
    less = {n: t for n, t in tensors.items() if n != "blk.1.ffn_up.weight"}
    message = refused(write_gguf(tmp_path / "l.gguf", less), tmp_path)
    assert "'model.layers.1.mlp.up_proj.weight' is missing, expected (96, 64)" in message


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"tokenizer.ggml.pre", b"tokenizer.ggml.xxx", "pre-tokenizer 'default'"),
        (b"llama.context_length", b"llama.context_lengtx", "'llama.context_length' is missing"),
        (b"smollm", b"smoll\xff", "'tokenizer.ggml.pre' is not UTF-8"),
        ("Ġ cat".encode(), "Ġ tac".encode(), "is not of words in its vocabulary"),
    ],
)
def test_damaged_metadata_is_named(
    small: Small, tmp_path: Path, old: bytes, new: bytes, why: str
) -> None:
    content = small.gguf.read_bytes()
    assert old in content
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content.replace(old, new[: len(old)].ljust(len(old), b"\x00")))
    assert why in refused(damaged, tmp_path)


def test_every_truncation_is_refused(small: Small, tmp_path: Path) -> None:
    content = small.gguf.read_bytes()
    end = max(t.data_offset + t.n_bytes for t in gguf.GGUFReader(small.gguf).tensors)
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 64, 5), *range(64, end, end // 60), end - 1]:
        cut.write_bytes(content[:size])
        message = refused(cut, tmp_path)
        assert "truncated" in message or "is not a GGUF file" in message, size
