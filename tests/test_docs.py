"""The documents against the tree: the map, commands, keys, endpoints and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import parallel
from launch.entry import known_keys, to_settings
from launch.planning import model_spec, search
from launch.schema import (
    CalibrateCommand,
    GenerateCommand,
    MeasureCommand,
    PlanCommand,
    ServeCommand,
    SubmitCommand,
)
from parallel.instrument.cost import InstrumentCost, RecordCosts
from parallel.instrument.ledger import Ledger
from parallel.instrument.memory import MemoryEntry, MemoryTimeline
from parallel.report.report import build_report

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md"])
SCHEMAS = {
    "plan": PlanCommand,
    "generate": GenerateCommand,
    "serve": ServeCommand,
    "calibrate": CalibrateCommand,
    "measure": MeasureCommand,
    "submit": SubmitCommand,
}
TORCHRUN_OPTIONS = {
    *("--nnodes", "--nproc-per-node", "--node-rank", "--master-addr", "--master-port"),
}
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "docs/map.md").read_text()
CONTRACT = (ROOT / "docs/contract.md").read_text()


# ------------------------------------------------------------------------------- the map


def mapped() -> set[str]:
    """Paths that the map lists: `- `name`` under a heading ### `folder/`."""
    found, folder = set(), ""
    for line in MAP.splitlines():
        if heading := re.fullmatch(r"### `(.+/)`", line):
            folder = heading[1]
        elif item := re.match(r"- `([^`]+)` — .", line):
            found.add(folder + item[1])
    return found


def tree() -> set[str]:
    """Modules that hold anything, and configurations."""
    folders = ("parallel", "launch", "benchmarks", "tests")
    modules = (p for f in folders for p in (ROOT / f).rglob("*.py") if p.stat().st_size)
    configs = (p for p in (ROOT / "configs").rglob("*.yaml"))
    return {str(p.relative_to(ROOT)) for p in (*modules, *configs)}


def test_the_map_names_every_module() -> None:
    missing = tree() - mapped()
    assert not missing, "give each a line in docs/map.md"


def test_everything_on_the_map_exists() -> None:
    assert not [path for path in mapped() if not (ROOT / path).is_file()]
    assert len(mapped()) > 100, "the map's form is no longer understood here"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_in_the_text_exist(page: Path) -> None:
    folders = r"parallel|launch|configs|tests|benchmarks|docs|\.ci"
    spans = re.findall(rf"`((?:{folders})/[^`\s]*)`", prose(page))
    assert not [path for path in spans if not (ROOT / path).exists()]


# -------------------------------------------------------------------------- the commands


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """Words of each command: lines of ```sh blocks, and spans that start as commands do."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:make|torchrun|python) [^`]+)`", prose(page))
    for line in lines:
        words = shlex.split(line.split(" | ")[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield words


def checked(schema: type, arguments: list[str]) -> Any:
    """Settings from overrides; an unknown key or a value of the wrong type raises."""
    plain = [a.lstrip("+") for a in arguments]
    keys = {a.partition("=")[0] for a in plain}
    assert keys <= set(known_keys(schema)), keys
    return to_settings(OmegaConf.from_dotlist(plain), schema)


def check_launcher(words: list[str], ranks: int | None) -> None:
    script, *arguments = words
    assert (ROOT / script).is_file(), script
    name = Path(script).stem
    if script.startswith("benchmarks/"):
        text = (ROOT / script).read_text()
        assert all(f'"{flag}"' in text for flag in arguments if flag.startswith("--"))
    elif name == "fetch":
        assert all(a.startswith("model=") for a in arguments)
    else:
        if arguments[:1] == ["-m"]:
            own = (a for a in arguments[1:] if not a.lstrip("+").startswith("hydra"))
            arguments = [a.split(",")[0] for a in own]
        settings = checked(SCHEMAS[name], arguments)
        if ranks is not None and name != "calibrate":
            assert prod(d or 1 for d in (settings.tp, settings.pp, settings.dp)) == ranks


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, value = word.partition("=")
        if is_variable:
            assert re.search(rf"^{name} \?=", makefile, re.M), word
            if name == "ARGS":
                checked(ServeCommand, shlex.split(value))
        else:
            assert re.search(rf"^{name}:", makefile, re.M), word


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_are_those_that_exist(page: Path) -> None:
    for program, *words in commands(page):
        if program == "make":
            check_make(words)
        elif program == "torchrun":
            script = next(i for i, word in enumerate(words) if word.endswith(".py"))
            options = dict(zip(words[:script:2], words[1:script:2], strict=True))
            assert set(options) <= TORCHRUN_OPTIONS, options
            ranks = int(options.get("--nnodes", 1)) * int(options["--nproc-per-node"])
            check_launcher(words[script:], ranks)
        elif program == "python" and words[0] != "-m":
            check_launcher(words, None)
        elif Path(program).name == "python":
            assert all((ROOT / word).exists() for word in words if word.endswith(".py")), words
        else:
            assert program in ("pip", "curl"), program


def test_the_readme_shows_how_to_start() -> None:
    found = [" ".join(words) for words in commands(ROOT / "README.md")]
    for command in ("make serve", "make test", "torchrun --nproc-per-node 4 launch/serve.py +tp=4"):
        assert command in found


# ----------------------------------------------------------- keys, endpoints, JSON, links


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def schema_defaults(schema: type) -> dict[str, Any]:
    made, out = schema(), {}
    for f in fields(made):
        value = getattr(made, f.name)
        out[f.name] = schema_defaults(type(value)) if is_dataclass(value) else value
    return {k: v.value if isinstance(v, Enum) else v for k, v in flat(out).items()}


def yaml_defaults(name: str) -> dict[str, Any]:
    """What Hydra composes: base.yaml, run.yaml where it is named, then the launcher's own."""
    own = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    out: dict[str, Any] = {}
    for parent in (p for p in own.pop("defaults", ()) if p in ("base", "run", "serve")):
        out |= yaml_defaults(parent)
    own.pop("hydra", None)
    return out | flat(own)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_contract_lists_every_key_with_its_default(name: str) -> None:
    rows = dict(re.findall(r"^\| `([a-z_.: ]+)` \| ([^|]+?) \|", CONTRACT, re.M))
    defaults = schema_defaults(SCHEMAS[name])
    assert yaml_defaults(name) == defaults
    words = {None: "null", "???": "required"}
    for key, value in defaults.items():
        given = f"{name}: {key}" if f"{name}: {key}" in rows else key
        shown = str(value).lower() if isinstance(value, bool) else value
        expected = str(value) if isinstance(value, list) else words.get(value, shown)
        if key == "output":
            continue  # a format in plan, a file in generate: in the text
        assert rows[given] == f"`{expected}`" or rows[given] == str(expected), key


def test_the_readme_names_every_endpoint() -> None:
    sources = "".join(p.read_text() for p in (ROOT / "parallel/server").glob("*.py"))
    routes = set(re.findall(r'@routes\.(?:get|post)\("([^"]+)"', sources))
    documented = set(re.findall(r"`(?:GET |POST )?(/(?:v1/[a-z/]+|[a-z]+))`", README))
    assert {r.split("/{")[0] for r in routes} == documented


def all_keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(all_keys, value.values()))
    return set().union(*map(all_keys, value)) if isinstance(value, list) else set()


def test_the_contract_names_every_field_of_plan_and_report() -> None:
    settings = PlanCommand(tp=2, memory_gib=4.0, cluster="8xh100")
    outcome = search(settings, model_spec(settings), None).to_json()
    ledger = Ledger(phase="decode")
    ledger.add(("tp", "all_reduce", "ffn", "decode", "gloo"), 1, 0, 1)
    step = {"predicted_seconds": 1, "measured_seconds": 1, "steps": 1, "tokens": 1, "rows": 1}
    step |= {"swapped_blocks": 1, "predicted_swap_seconds": 1}
    timeline = MemoryTimeline()
    timeline.event(MemoryEntry(0, "loaded", *[0] * 9))
    memory = timeline.rows(0, float)
    cost = InstrumentCost(1, 1, 1, 1, RecordCosts(1e-6, 1e-6, 1e-6)).to_json()
    found = {"rank": 0, "memory_timeline": memory, "instrument": cost}
    report = build_report(outcome["plans"][0], [found], ledger.rows(0), {"decode": step})
    rejected = search(PlanCommand(tp=99), model_spec(settings), None).to_json()
    for key in all_keys([outcome, rejected, report]):
        assert f'"{key}"' in CONTRACT or f"`{key}`" in CONTRACT, key


def anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    bare = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return bare.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert fragment in map(anchor, headings), target


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", text, re.M)
    assert versions[0] == "Unreleased" and parallel.__version__ in versions
