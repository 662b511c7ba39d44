"""Plans and trade-off reports as one HTML file that opens anywhere: nothing in it is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parallel.errors import ConfigError
from parallel.report.comparison import Comparison
from parallel.report.comparison_view import comparison_view
from parallel.report.plan_view import plan_view
from parallel.report.trade_off_view import trade_off_view
from parallel.report.view import View

Json = Mapping[str, Any]
_TEMPLATE = Path(__file__).with_name("page.html")


def check_page(path: Path) -> None:
    """Raises `ConfigError` for what can't be written, before any work."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"page={path} must end in .html")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"page={path}: its folder doesn't exist; make it first")


def write_plan_page(body: Json, path: Path) -> None:
    """Of a plan's JSON form, `{"plans", "rejected"}`."""
    from parallel.report.charts import plan_charts

    check_page(path)
    path.write_text(_page(plan_view(body), plan_charts(body)), encoding="utf-8")


def write_trade_off_page(body: Json, path: Path) -> None:
    """Of a trade-off report's JSON form."""
    from parallel.report.charts import trade_off_charts

    check_page(path)
    path.write_text(_page(trade_off_view(body), trade_off_charts(body)), encoding="utf-8")


def write_comparison_page(found: Comparison, path: Path) -> None:
    """Of a sweep."""
    from parallel.report.comparison_charts import comparison_charts

    check_page(path)
    path.write_text(_page(comparison_view(found), comparison_charts(found)), encoding="utf-8")


def _page(view: View, charts: list[Any]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    from parallel.report.canvas import COLOURS, DARK, FONTS, chart_svg, variables

    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=view.title,
        eyebrow=view.eyebrow,
        verdict=view.verdict,
        reasons=view.reasons,
        headlines=view.headlines,
        tables=view.tables,
        facts=view.facts,
        charts=[
            {"title": chart.title, "note": chart.note, "svg": Markup(chart_svg(chart))}
            for chart in charts
        ],
        light=Markup(variables(COLOURS)),
        dark=Markup(variables(DARK)),
        fonts=Markup(FONTS),
    )
