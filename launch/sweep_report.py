"""A sweep's end: its points compared on the terminal, as JSON lines and as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launch.sweep import read_points
from parallel.report.comparison import compare_results
from parallel.report.comparison_tables import comparison_tables
from parallel.report.page import write_comparison_page
from parallel.report.render import make_console, write_line


def compare_points(folder: Path) -> None:
    """`results.jsonl` has a line for each point, `comparison.json` and `comparison.html` all."""
    points = read_points(folder)
    found = compare_results(points)
    console = make_console()
    comparison_tables(found, console)
    lines = [json.dumps(point) + "\n" for point in points]
    (folder / "results.jsonl").write_text("".join(lines))
    (folder / "comparison.json").write_text(json.dumps(found.to_json(), indent=2) + "\n")
    write_comparison_page(found, folder / "comparison.html")
    write_line(console, f"results, comparison and page: {folder}")
    sys.stdout.flush()
