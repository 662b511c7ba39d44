"""The charts of a plan or of a trade-off report as one picture, PNG or SVG by its suffix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parallel.errors import ConfigError
from parallel.report.plan_view import plan_view
from parallel.report.trade_off_view import trade_off_view
from parallel.report.view import View

Json = Mapping[str, Any]
SUFFIXES = (".png", ".svg")


def check_picture(path: Path) -> None:
    """Raises `ConfigError` for what can't be written, before any work."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"picture={path} must end in {' or '.join(SUFFIXES)}")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"picture={path}: its folder doesn't exist; make it first")


def write_plan_picture(body: Json, path: Path) -> None:
    """Of a plan's JSON form, `{"plans", "rejected"}`."""
    from parallel.report.charts import plan_charts

    _write(plan_charts(body), plan_view(body), path)


def write_trade_off_picture(body: Json, path: Path) -> None:
    """Of a trade-off report's JSON form."""
    from parallel.report.charts import trade_off_charts

    _write(trade_off_charts(body), trade_off_view(body), path)


def _write(charts: list[Any], view: View, path: Path) -> None:
    from parallel.report.canvas import picture_png, picture_svg

    check_picture(path)
    line = f"{view.eyebrow}. {view.verdict}."
    if path.suffix.lower() == ".png":
        path.write_bytes(picture_png(charts, view.title, line))
    else:
        path.write_text(picture_svg(charts, view.title, line), encoding="utf-8")
