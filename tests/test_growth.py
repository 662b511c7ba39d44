"""The pure parts of the benchmark of growth: exponents, verdicts, the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.growth import AXES, Point, Run, point
from benchmarks.growth_fit import Axis, Exponent, Quantity
from benchmarks.growth_plot import write_plot

SIZES = [1, 2, 4, 8, 16]


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_a_power_law_has_its_exponent_and_no_error(power: float, factor: float) -> None:
    found = Exponent.of(SIZES, [factor * size**power for size in SIZES])
    assert found.value == pytest.approx(power, abs=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_small_sizes_do_not_hide_growth_at_large_ones() -> None:
    """A floor of 100 under n², of which the larger half tells more."""
    values = [100 + size**2 for size in (1, 2, 4, 8, 16, 32, 64, 128)]
    found = Exponent.of([1, 2, 4, 8, 16, 32, 64, 128], values)
    all_points = Exponent.of([1, 2, 4], values[:3])
    assert found.value > 1.6 > 0.1 > all_points.value


def test_the_error_of_an_exponent() -> None:
    # In logarithms to base 2: (0, 0), (1, 1), (2, 3): slope 1.5, residuals −1/6, 1/3, −1/6.
    found = Exponent.of([1, 2, 4], [1, 2, 8])
    assert found.value == pytest.approx(1.5)
    assert found.error == pytest.approx((1 / 6 / 1 / 2) ** 0.5)
    assert found.exceeds(0.7) and not found.exceeds(1.0)


@pytest.mark.parametrize(
    "sizes, values", [([1, 2], [1, 2]), ([1, 2, 4], [0, 1, 2]), ([2] * 3, [1] * 3)]
)
def test_what_has_no_exponent(sizes: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"three points|one size"):
        Exponent.of(sizes, values)


def axis(step_power: float) -> Axis:
    times = Quantity("decode step", "ms", 1, [2.0 * size**step_power for size in SIZES])
    memory = Quantity("cache in use", "MiB", 1, [3.0 * size for size in SIZES])
    return Axis("requests", "Small.", SIZES, [times, memory])


def test_only_what_grows_too_fast_is_named() -> None:
    assert axis(1.0).too_fast() == axis(0.2).too_fast() == []
    (words,) = axis(1.5).too_fast()
    assert words.startswith("decode step grows with requests to the power of 1.50")


def test_the_picture_names_what_it_shows(tmp_path: Path) -> None:
    write_plot([axis(1.0)], "2026-01-01, a machine.", tmp_path / "g.svg")
    text = (tmp_path / "g.svg").read_text()
    assert "Against requests" in text and "decode step: power 1.00 ± 0.00" in text
    write_plot([axis(1.0)], "", tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


def test_each_axis_changes_one_thing() -> None:
    for plan in AXES.values():
        assert len(plan.sizes) >= 5
        assert len({plan.run(size) for size in plan.sizes}) == len(plan.sizes)
    assert AXES["context"].run(8192) == Run(prompt_tokens=8192)
    assert AXES["layers"].run(8) == Run(layers=8, hidden=1024)


def test_a_point_is_of_the_fullest_rank() -> None:
    def rank(activations: int) -> dict[str, object]:
        return {"memory_bytes": {"activations": {"measured": activations}}}

    layout = {
        "phases": {"decode": {"step_ms": {"measured": 3.0}, "host_ms": {"measured": 0.5}}},
        "report": {
            "steps": {"prefill": {"measured_seconds": 0.25}},
            "memory_timeline": [{"kv_used": 0}, {"kv_used": 2**21}, {"kv_used": 2**20}],
            "ranks": [rank(2**20), rank(3 * 2**20)],
        },
    }
    assert point(layout, Run(requests=2)) == Point(3.0, 0.5, 125.0, 2.0, 3.0)
