"""`python launch/generate.py model=DIR tp=2 input=prompts.jsonl output=out.jsonl`"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.entry import EXIT_FAILED, run_command
from launch.offline import Batch, read_lines
from launch.running import start_or_join
from launch.schema import GenerateCommand
from parallel.errors import ConfigError
from parallel.planner.plan import Plan
from parallel.text.tokenizer import Tokenizer


def main(settings: GenerateCommand) -> int:
    output = Path(settings.output)
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"output={output}: its folder doesn't exist; make it first")
    return start_or_join(
        settings,
        Path(__file__).resolve(),
        partial(_rank, settings),
        partial(_batch, settings),
        after_signal=EXIT_FAILED,
    )


def _batch(settings: GenerateCommand, directory: Path, plan: Plan) -> Batch:
    """Reads and checks the input, so that a bad line is found before anything is loaded."""
    tokenizer = Tokenizer.find(directory)
    vocabulary = plan.layout.spec.vocabulary
    lines = read_lines(Path(settings.input), tokenizer, plan.context_tokens, vocabulary)
    return Batch(lines, tokenizer)


def _rank(settings: GenerateCommand, directory: Path, plan: Plan) -> int:
    # Here torch comes in: the process that only plans and starts ranks does without.
    from launch.batch_host import BatchHost
    from launch.rank import run_rank

    def make_host() -> BatchHost:
        batch = _batch(settings, directory, plan)
        return BatchHost(batch, plan.layout.degrees.dp, Path(settings.output))

    return run_rank(settings, directory, plan, make_host)


if __name__ == "__main__":
    run_command("generate", GenerateCommand, main)
