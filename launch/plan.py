"""`python launch/plan.py model=DIR tp=2`: what would go where, and how fast, before loading."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.entry import EXIT_DONE, EXIT_USER, fail, run_command
from launch.planning import model_spec, search
from launch.provenance import provenance
from launch.schema import PlanCommand, PlanOutput
from parallel.errors import TesseraError


def main(settings: PlanCommand) -> int:
    page, picture = (None if f is None else Path(f) for f in (settings.page, settings.picture))
    _check(page, picture)
    outcome = search(settings, model_spec(settings), None)
    body = outcome.to_json()
    cluster = outcome.plans[0].cluster if outcome.plans else None
    body["provenance"] = provenance(settings, cluster).to_json()
    if settings.output is PlanOutput.json:
        print(json.dumps(body, indent=2))
    else:
        from parallel.report.render import make_console
        from parallel.report.tables import plan_tables

        plan_tables(body, make_console())
    _draw(body, page, picture)
    if outcome.plans:
        return EXIT_DONE
    try:
        outcome.best()
    except TesseraError as error:
        fail(error)
    return EXIT_USER


def _check(page: Path | None, picture: Path | None) -> None:
    """Files that can't be written are refused before the search."""
    if page is not None:
        from parallel.report.page import check_page

        check_page(page)
    if picture is not None:
        from parallel.report.picture import check_picture

        check_picture(picture)


def _draw(body: dict[str, Any], page: Path | None, picture: Path | None) -> None:
    if page is not None:
        from parallel.report.page import write_plan_page

        write_plan_page(body, page)
    if picture is not None:
        from parallel.report.picture import write_plan_picture

        write_plan_picture(body, picture)


if __name__ == "__main__":
    run_command("plan", PlanCommand, main)
