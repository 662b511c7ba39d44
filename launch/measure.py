"""`python launch/measure.py model=DIR tp=2`: what a layout saves and costs, measured."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.comparing import Baseline, choose_baseline, compare
from launch.entry import EXIT_FAILED, is_first_rank, run_command
from launch.measure_rank import check_workload, measure_on_rank
from launch.provenance import provenance
from launch.run_folder import REPORT, RunFolder
from launch.running import start_or_join
from launch.schema import BaselineChoice, MeasureCommand
from launch.sweep import RESULT, point_folder
from launch.sweep_report import compare_points
from parallel.errors import ConfigError
from parallel.planner.plan import Plan
from parallel.report.page import check_page, write_trade_off_page
from parallel.report.picture import check_picture, write_trade_off_picture
from parallel.report.render import make_console
from parallel.report.trade_off_tables import trade_off_tables

Json = dict[str, Any]
_RANK = Path(__file__).resolve().parent / "measure_rank.py"


def main(settings: MeasureCommand) -> int:
    _check(settings)
    with tempfile.TemporaryDirectory(prefix="tessera-measure-") as scratch:
        return _Measurement(settings, Path(scratch), RunFolder(settings)).run()


def _check(settings: MeasureCommand) -> None:
    if settings.repeats < 1:
        raise ConfigError(f"repeats={settings.repeats} is out of range; give at least 1")
    if settings.output is not None and not Path(settings.output).resolve().parent.is_dir():
        raise ConfigError(f"output={settings.output}: its folder doesn't exist; make it first")
    if settings.page is not None:
        check_page(Path(settings.page))
    if settings.picture is not None:
        check_picture(Path(settings.picture))


@dataclass
class _Measurement:
    """The layout's ranks, then the baseline's, then what the two come to.

    Under torchrun the ranks are there already: no others can be started, and the baseline is what
    its plan says."""

    settings: MeasureCommand
    scratch: Path
    folder: RunFolder

    def run(self) -> int:
        code, plan = self._start(self.settings, "layout")
        if code or plan is None:
            return code
        found = self._read("layout")
        baseline = None
        if self.settings.baseline is BaselineChoice.auto:
            baseline = choose_baseline(self.settings, plan)
        if baseline is not None and baseline.measurable:
            code, _ = self._start(self._as(baseline), "baseline", *baseline.overrides, "trace=null")
            if code:
                return code
            baseline = replace(baseline, found=self._read("baseline"))
        finish(self.settings, plan, found, baseline, self.folder)
        return 0

    def _as(self, baseline: Baseline) -> MeasureCommand:
        d = baseline.plan.layout.degrees
        return replace(
            self.settings,
            tp=d.tp,
            pp=d.pp,
            dp=d.dp,
            stage_tp=None if d.stage_tp is None else list(d.stage_tp),
            stages=None,
            heads="auto",
        )

    def _start(
        self, settings: MeasureCommand, name: str, *overrides: str
    ) -> tuple[int, Plan | None]:
        """Exit code of the ranks, and their plan where they were started here."""
        plans: list[Plan] = []

        def check(_: Path, plan: Plan) -> None:
            check_workload(plan)
            plans.append(plan)

        file = self.scratch / f"{name}.json"
        code = start_or_join(
            settings,
            _RANK,
            partial(self._rank, settings),
            check,
            after_signal=EXIT_FAILED,
            more=(*overrides, f"output='{file}'", "page=null", "picture=null", "report=null"),
            folder=self.folder,
            within="" if name == "layout" else name,
        )
        return code, plans[0] if plans else None

    def _rank(self, settings: MeasureCommand, directory: Path, plan: Plan) -> int:
        """Under torchrun."""

        def done(found: Json) -> None:
            baseline = None
            if settings.baseline is BaselineChoice.auto:
                baseline = choose_baseline(settings, plan)
            finish(settings, plan, found, baseline, self.folder)

        return measure_on_rank(settings, directory, plan, done, self.folder)

    def _read(self, name: str) -> Json:
        found: Json = json.loads((self.scratch / f"{name}.json").read_text())
        return found


def finish(
    settings: MeasureCommand,
    plan: Plan,
    found: Json,
    baseline: Baseline | None,
    folder: RunFolder,
) -> None:
    """Shows and writes what was found."""
    origin = {"provenance": provenance(settings, plan.cluster).to_json()}
    body = {**compare(settings, plan, found, baseline).to_json(), **origin}
    report = {**found["report"], **origin}
    if is_first_rank():
        trade_off_tables(body, make_console())
        sys.stdout.flush()
    if settings.report is not None:
        Path(settings.report).write_text(json.dumps(report, indent=2) + "\n")
    folder.write(REPORT, report)
    places = {place for place in (folder.path(), point_folder()) if place is not None}
    files = [place / RESULT for place in places]
    if settings.output is not None:
        files.append(Path(settings.output))
    for file in files:
        file.write_text(json.dumps(body, indent=2) + "\n")
    if settings.page is not None:
        write_trade_off_page(body, Path(settings.page))
    if settings.picture is not None:
        write_trade_off_picture(body, Path(settings.picture))


if __name__ == "__main__":
    run_command("measure", MeasureCommand, main, compare_points)
