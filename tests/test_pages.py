"""Pages and pictures: whole in one file, sound, and true to the result."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.errors import ConfigError
from parallel.report.canvas import COLOURS, DARK, WIDTH, chart_svg
from parallel.report.charts import plan_charts, trade_off_charts
from parallel.report.labels import Box, Dot, place_labels
from parallel.report.page import check_page, write_plan_page, write_trade_off_page
from parallel.report.picture import check_picture, write_plan_picture, write_trade_off_picture
from parallel.units import format_bytes, format_count, format_seconds
from tests.measured import layouts, made_trade_off

Json = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def plans() -> Json:
    return layouts(4)


@pytest.fixture(scope="module")
def trade_off() -> Json:
    return made_trade_off(tp=2).to_json()


def written(body: Json, tmp_path: Path) -> str:
    """The page of plans or of a trade-off."""
    path = tmp_path / "page.html"
    (write_plan_page if "plans" in body else write_trade_off_page)(body, path)
    return path.read_text()


def pages(plans: Json, trade_off: Json, tmp_path: Path) -> Iterator[str]:
    for body in (plans, trade_off):
        yield written(body, tmp_path)


# ------------------------------------------------------------------------------ one file


def test_pages_fetch_nothing(plans: Json, trade_off: Json, tmp_path: Path) -> None:
    for page in pages(plans, trade_off, tmp_path):
        bare = re.sub(r' xmlns(:\w+)?="[^"]*"', "", page)
        assert not re.search(r"https?:|//\w|@import|<script|<link|<iframe|\bsrc=", bare)
        assert all(ref.startswith("#") for ref in re.findall(r'href="([^"]*)"', bare))
        assert all(ref.startswith("#") for ref in re.findall(r"url\(([^)]*)\)", bare))


class Sound(HTMLParser):
    """Every element that is opened is closed, in order."""

    void = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_pages_and_their_drawings_are_sound(plans: Json, trade_off: Json, tmp_path: Path) -> None:
    for page in pages(plans, trade_off, tmp_path):
        parser = Sound()
        parser.feed(page)
        assert not parser.open
        drawings = re.findall(r"<svg.*?</svg>", page, re.S)
        assert len(drawings) >= 4
        for drawing in drawings:
            assert ET.fromstring(drawing).tag == f"{SVG}svg"
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids)), "an id that two drawings share"


def test_drawings_take_their_colours_from_the_page(plans: Json, trade_off: Json) -> None:
    """Light or dark, whatever the screen is: no colour is left that the page couldn't change."""
    assert COLOURS.keys() == DARK.keys()
    for chart in (*plan_charts(plans), *trade_off_charts(trade_off)):
        drawing = chart_svg(chart)
        assert not re.findall(r"#[0-9a-f]{6}\b", drawing), chart.name
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= COLOURS.keys()


def test_names_of_models_are_text_not_markup(plans: Json, tmp_path: Path) -> None:
    named = {**plans, "plans": [{**plans["plans"][0], "model": "<b>&co"}]}
    page = written(named, tmp_path)
    assert "&lt;b&gt;&amp;co" in page and "<b>&co" not in page


# ------------------------------------------------------------------------- true to results


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from numbers(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def spellings(body: Json) -> set[str]:
    """All that the figures of a result may look like, and shares of one step."""
    found: set[str] = set()
    for x in set(numbers(body)):
        found |= {format_bytes(x), format_seconds(x), format_seconds(x / 1e3), format_count(x)}
        found |= {f"{x:.1f}", f"{x:.2f} ×", f"{x:.3f}", f"$ {x:.3f}", f"{x:+.1%}", f"{x:.0%}"}
        found |= {f"{x:.1%}", str(x)}
    return found


def cells(page: str) -> list[str]:
    """Figures in large type, and those of the tables but their words."""
    plain = re.sub(r'<table class="words">.*?</table>', "", page, flags=re.S)
    texts = re.findall(r"<(?:b|td)>([^<]*)</(?:b|td)>", plain)
    words = re.compile(r"(stage_)?tp=|ranks?\b|^[\d,-]+$|^[^\d]*$")
    return [text for text in texts if not words.search(text)]


def test_every_figure_on_a_page_is_the_results(
    plans: Json, trade_off: Json, tmp_path: Path
) -> None:
    for body in (plans, trade_off):
        shown = cells(written(body, tmp_path))
        assert len(shown) > 40
        assert not set(shown) - spellings(body)


def test_the_verdict_and_its_reasons_are_on_the_page(trade_off: Json, tmp_path: Path) -> None:
    page = written(trade_off, tmp_path)
    assert trade_off["verdict"]["decision"].capitalize().replace("'", "&#39;") in page
    for reason in trade_off["verdict"]["reasons"]:
        assert reason in page


def test_bars_are_as_long_as_what_they_stand_for(trade_off: Json) -> None:
    """In the memory chart the measured weights of both kinds of rank, to a pixel."""
    chart = next(c for c in trade_off_charts(trade_off) if c.name == "memory")
    root = ET.fromstring(chart_svg(chart))
    lengths = [
        max(xs) - min(xs)
        for path in root.iter(f"{SVG}path")
        if path.get("style", "") == "fill: var(--blue)" and "clip-path" in path.attrib
        for xs in [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d", ""))]]
    ]
    held = [
        side["report"]["ranks"][0]["memory_bytes"]["weights"]["measured"]
        for side in (trade_off["layout"], trade_off["baseline"])
    ]
    assert lengths[-1] / lengths[0] == pytest.approx(held[1] / held[0], rel=0.03)


@pytest.mark.parametrize("tp, pp, dp", [(1, 1, 1), (8, 1, 1), (2, 2, 2), (8, 2, 4)])
def test_any_number_of_ranks_is_drawn(tp: int, pp: int, dp: int, tmp_path: Path) -> None:
    result = made_trade_off(tp, pp, dp, baseline=tp > 1).to_json()
    charts = trade_off_charts(result)
    assert {"memory", "decode-steps", "prefill-steps", "agreement"} <= {c.name for c in charts}
    assert max(chart.height for chart in charts) < 700
    memory = ET.fromstring(chart_svg(next(c for c in charts if c.name == "memory")))
    assert max(len(text.text or "") for text in memory.iter(f"{SVG}text")) < 50
    write_trade_off_page(result, tmp_path / "page.html")


def test_no_plan_is_a_page_too(tmp_path: Path) -> None:
    refused = {"tp": 9, "pp": 1, "dp": 1, "reason": "too <wide>", "suggestion": "use tp=8"}
    page = written({"plans": [], "rejected": [refused]}, tmp_path)
    assert "No layout fits" in page and "too &lt;wide&gt;" in page and "use tp=8" in page


# -------------------------------------------------------------------------------- pictures


def test_pictures_are_what_their_suffix_says(plans: Json, trade_off: Json, tmp_path: Path) -> None:
    for body, write in ((plans, write_plan_picture), (trade_off, write_trade_off_picture)):
        write(body, tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert int.from_bytes(data[16:20]) > 2 * WIDTH
        write(body, tmp_path / "a.SVG")
        root = ET.parse(tmp_path / "a.SVG").getroot()
        assert root.tag == f"{SVG}svg" and len(list(root.iter(f"{SVG}text"))) > 30


def test_the_same_result_gives_the_same_bytes(plans: Json, tmp_path: Path) -> None:
    for suffix in ("png", "svg"):
        for name in ("a", "b"):
            write_plan_picture(plans, tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert written(plans, tmp_path) == written(plans, tmp_path)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"picture=.*\.jpg must end in \.png or \.svg"):
        check_picture(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match="folder doesn't exist"):
        check_picture(tmp_path / "none" / "a.png")
    with pytest.raises(ConfigError, match=r"page=.* must end in \.html"):
        check_page(tmp_path / "a.pdf")
    with pytest.raises(ConfigError, match="folder doesn't exist"):
        check_page(tmp_path / "none" / "a.html")


# ---------------------------------------------------------------------------------- labels


dots = st.builds(
    Dot,
    x=st.floats(0, 600),
    y=st.floats(0, 300),
    radius=st.floats(2, 12),
    name=st.sampled_from(["", "tp=2", "tp=8 dp=16"]),
    width=st.just(60.0),
)


@given(st.lists(dots, max_size=64))
def test_labels_lie_on_nothing(given_: list[Dot]) -> None:
    frame = Box(0, 0, 600, 300)
    boxes = []
    for label in place_labels(given_, frame, 10):
        left = label.x if label.align == "left" else label.x - 60
        boxes.append(Box(left, label.y - 6.25, left + 60, label.y + 6.25))
    for index, box in enumerate(boxes):
        assert box.inside(frame)
        assert not any(box.overlaps(other) for other in boxes[:index])
        assert not any(box.overlaps(dot.box) for dot in given_)


def test_a_lone_point_is_named_beside_it() -> None:
    (label,) = place_labels([Dot(50, 50, 5, "tp=2", 30)], Box(0, 0, 200, 100), 10)
    assert (label.x, label.y, label.align) == (59, 50, "left")
