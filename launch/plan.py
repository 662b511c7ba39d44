"""`python launch/plan.py model=DIR tp=2`: what would go where, and how fast, before loading."""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.entry import EXIT_DONE, EXIT_USER, fail, run_command
from launch.planning import model_spec, search
from launch.schema import PlanCommand, PlanOutput
from parallel.errors import TesseraError


def main(settings: PlanCommand) -> int:
    outcome = search(settings, model_spec(settings), None)
    body = outcome.to_json()
    if settings.output is PlanOutput.json:
        print(json.dumps(body, indent=2))
    else:
        from parallel.report.render import make_console
        from parallel.report.tables import plan_tables

        plan_tables(body, make_console())
    if outcome.plans:
        return EXIT_DONE
    try:
        outcome.best()
    except TesseraError as error:
        fail(error)
    return EXIT_USER


if __name__ == "__main__":
    run_command("plan", PlanCommand, main)
