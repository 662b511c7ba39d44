"""A short soak of a real server, and the judgement on soaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.systems import OURS, System
from benchmarks.random_llama import LLAMA_TINY, ensure_random_llama
from benchmarks.soak import run
from benchmarks.soaking.run import Soaked
from benchmarks.soaking.traffic import Tally
from benchmarks.soaking.vitals import Load, Trend, Vitals, parse_load

METRICS = """# HELP tessera:num_requests_running Sequences in the batch
tessera:num_requests_running{engine="0",model_name="bench"} 3.0
tessera:num_requests_running{engine="1",model_name="bench"} 2.0
tessera:num_requests_waiting{engine="0",model_name="bench"} 1.0
tessera:kv_cache_usage_perc{engine="0",model_name="bench"} 0.25
tessera:kv_cache_usage_perc{engine="1",model_name="bench"} 0.5
"""
IDLE = Load(0, 0, 0)


def test_a_server_comes_through_mixed_traffic(tmp_path: Path) -> None:
    model = ensure_random_llama(LLAMA_TINY)
    soaked, faults = run(
        model, System(OURS, tp=2), tmp_path / "log", 6, lambda: lambda begun: begun < 60, 1e9
    )
    assert faults == []
    done = soaked.tally.done
    for kind in ("stream", "whole", "cancelled", "bad request", "several", "long prompt"):
        assert done[kind] > 0, done
    assert done["in a burst"] > 0 and done["refused: queue full"] > 0, done
    assert soaked.after.load == IDLE


def test_the_load_is_read_from_metrics() -> None:
    assert parse_load(METRICS) == Load(running=5, waiting=1, cache_used=0.5)
    with pytest.raises(ValueError, match="num_requests_running"):
        parse_load("")


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_a_line_has_its_slope_and_no_error(slope: float, start: float) -> None:
    found = Trend.of(range(10), [start + slope * x for x in range(10)])
    assert found.slope == pytest.approx(slope, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_the_error_of_a_slope() -> None:
    # By hand: slope 1.5, residuals ±0.5 twice, Σ(x−mean)² = 2 with three points.
    found = Trend.of([0, 1, 2], [0, 1, 3])
    assert found.slope == 1.5
    assert found.error == pytest.approx((1 / 6 / 1 / 2) ** 0.5)
    assert found.at_most(1.0) and not found.at_most(0.5)
    with pytest.raises(ValueError, match="three"):
        Trend.of([0, 1], [0, 1])


def vitals(second: int, resident_bytes: int, descriptors: int = 10, load: Load = IDLE) -> Vitals:
    return Vitals(float(second), resident_bytes, descriptors, 5, load)


def test_faults_are_found() -> None:
    flat = [vitals(i, 1000) for i in range(20)]
    sound = Soaked(Tally(), flat, before=vitals(0, 1000), after=vitals(20, 1000))
    assert sound.faults(0.0) == []
    assert sound.memory_trend() == Trend(0.0, 0.0)

    growing = replace(sound, samples=[vitals(i, 1000 + 10 * i) for i in range(20)])
    assert growing.faults(10.0) == []
    assert "grows by 10" in growing.faults(9.0)[0]

    lost = replace(sound, after=vitals(20, 1000, load=Load(1, 0, 0.0)))
    assert "places are lost" in lost.faults(0.0)[0]
    blocks = replace(sound, after=vitals(20, 1000, load=Load(0, 0, 0.01)))
    assert "1.00% of the cache" in blocks.faults(0.0)[0]
    leaking = replace(sound, after=vitals(20, 1000, descriptors=100))
    assert leaking.faults(0.0) == ["descriptors grew from 10 to 100"]

    tally = Tally(unexpected=[f"HTTP 500 {i}" for i in range(12)])
    words = replace(sound, tally=tally).faults(0.0)
    assert words[0] == "unexpected: HTTP 500 0" and words[-1] == "and 2 more like these"
