"""Collectives on links: curves, fits, and rows measured on real GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.calibration.fit import CollectivePoint, fit_collectives, mean_error, p90_error
from parallel.errors import HardwareError
from parallel.hardware.curve import Curve
from parallel.hardware.facts import Cluster, DeviceType, Launch, Link, Node
from parallel.hardware.known import known_devices
from parallel.hardware.link import CURVES, ONE_SHOT
from parallel.hardware.link_fields import read_link
from parallel.hardware.ring import OPERATIONS
from parallel.units import GIB, KIB, MIB

KNOWN = known_devices(Path(__file__).parents[1] / "configs" / "clusters" / "devices")
LINKS = {name: device.link for name, device in KNOWN.items() if device.link is not None}
RING = Curve(((2, 200e9), (8, 300e9)), 6e-6, 1e-6, 0.4, 15e-6, 2e-6, ramp_bytes=1e6)
ONE = Curve(
    ((2, 200e9), (8, 300e9)),
    4e-6,
    1e-7,
    0.7,
    8e-6,
    2e-7,
    quick_limit_bytes=2e6,
    direct=True,
    host_seconds=20e-6,
    copy_bytes_per_second=2e12,
)
TOY = Link("nvlink", 400e9, curves=(("all_reduce", RING), (ONE_SHOT, ONE)))


def test_every_device_has_a_link_and_its_curves() -> None:
    assert len(KNOWN) == len(LINKS) >= 14
    for link in LINKS.values():
        assert {"all_reduce", "all_gather", "all_to_all"} <= {name for name, _ in link.curves}
        for n in (2, 3, 8, 16):
            assert 0.01 < link.bandwidth(n) / link.bandwidth_bytes_per_second < 1.02


@given(
    name=st.sampled_from(sorted(LINKS)),
    operation=st.sampled_from(OPERATIONS),
    few=st.floats(0, 1e9),
    more=st.floats(0, 1e9),
    ranks=st.integers(2, 16),
    custom=st.booleans(),
)
@settings(max_examples=300)
def test_more_bytes_take_longer_and_graphs_never_do(
    name: str, operation: str, few: float, more: float, ranks: int, custom: bool
) -> None:
    def seconds(size: float, launch: Launch) -> float:
        return LINKS[name].collective_seconds(operation, size, ranks, launch, custom)

    assert 0 < seconds(few, "graph") <= seconds(few, "eager") * (1 + 1e-12)
    assert seconds(few, "graph") <= seconds(few + more, "graph") * (1 + 1e-12)
    assert seconds(few, "eager") <= seconds(few + more, "eager") * (1 + 1e-12)
    assert LINKS[name].collective_seconds(operation, few, 1) == 0.0


def test_two_ways_by_hand() -> None:
    few, many = 1e3, 1e9
    quick = 6e-6 + 2 * 1e-6 + few / (0.4 * 200e9)
    assert TOY.collective_seconds("all_reduce", few, 2) == pytest.approx(quick, rel=0.03)
    bulk = 15e-6 + 2 * 2e-6 + (many + (many * 1e6) ** 0.5) / 200e9
    assert TOY.collective_seconds("all_reduce", many, 2) == pytest.approx(bulk, rel=0.03)


def test_one_shot_by_hand() -> None:
    """Seven others get 64 KiB each at 0.7 of 300 GB/s; an eager call keeps the host busy."""
    graph = 4e-6 + 7e-7 + 7 * 64 * KIB / (0.7 * 300e9)
    found = TOY.collective_seconds("all_reduce", 64 * KIB, 8, "graph", custom=True)
    assert found == pytest.approx(graph, rel=0.1)
    assert found < TOY.collective_seconds("all_reduce", 64 * KIB, 8, "graph")
    eager = TOY.collective_seconds("all_reduce", 64 * KIB, 8, "eager", custom=True)
    assert eager == pytest.approx(20e-6, rel=0.05)
    large = [
        TOY.collective_seconds("all_reduce", 1e9, 8, way, custom=True) for way in ("eager", "graph")
    ]
    assert large[0] - large[1] == pytest.approx(1e9 / 2e12, rel=1e-3)


def test_operations_without_a_curve_follow_another_or_the_ring() -> None:
    link = LINKS["h100"]
    assert link.curve("reduce_scatter") == link.curve("broadcast") == link.curve("all_gather")
    assert link.curve("send") == link.curve("all_to_all")
    assert link.curve("all_gather", custom=True) == link.curve("all_gather")
    assert link.curve("all_reduce", custom=True) != link.curve("all_reduce")
    assert TOY.curve("send") is None
    with pytest.raises(HardwareError, match="did you mean 'all_to_all'"):
        link.collective_seconds("alltoall", 1.0, 2)


def test_the_slowest_link_of_a_group_decides() -> None:
    toy = DeviceType("toy", "cuda", GIB, 1e11, {"bf16": 1e13})
    network = Link("network", 10e9, 4e-6, 9e-6)
    cluster = Cluster("two", tuple(Node(n, (toy,) * 4, TOY, 8, GIB) for n in "ab"), network)
    inside = cluster.collective_seconds("all_reduce", MIB, range(4), custom=True)
    assert inside == TOY.collective_seconds("all_reduce", MIB, 4, custom=True)
    ring = 9e-6 + 14 * 4e-6 + 2 * 7 / 8 * MIB / 40e9
    assert cluster.collective_seconds("all_reduce", MIB, range(8)) == pytest.approx(ring)
    streams = replace(network, curves=(("all_reduce", RING),)).shared_by(4)
    assert streams.curves[0][1].bandwidth_by_ranks == ((2, 800e9), (8, 1200e9))


MEASURED = [
    # GPU, operation, ranks, KiB, launch, custom, microseconds
    ("h100", "all_reduce", 8, 32, "eager", False, 18.44),
    ("h100", "all_reduce", 4, 131072, "eager", False, 613.2),
    ("h100", "all_reduce", 8, 8, "graph", True, 5.108),
    ("h100", "all_reduce", 8, 8, "eager", True, 23.33),
    ("h200", "all_gather", 4, 32768, "eager", False, 105.1),
    ("b200", "reduce_scatter", 8, 8192, "eager", False, 43.64),
    ("b200", "all_reduce", 2, 131072, "graph", True, 280.4),
    ("a100", "all_to_all", 4, 32768, "eager", False, 172.9),
    ("l40s", "all_reduce", 2, 8192, "eager", False, 428.9),
    ("l40s", "all_gather", 8, 32768, "eager", False, 24640.0),
]


@pytest.mark.parametrize(("gpu", "operation", "ranks", "kib", "launch", "custom", "us"), MEASURED)
def test_shipped_links_are_near_what_was_measured(
    gpu: str, operation: str, ranks: int, kib: int, launch: Launch, custom: bool, us: float
) -> None:
    found = LINKS[gpu].collective_seconds(operation, kib * KIB, ranks, launch, custom)
    assert found == pytest.approx(1e-6 * us, rel=0.15)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_microseconds: 5", "hop_microseconds: 5", r"all_reduce: 'base_microseconds' is miss"),
        ("all_reduce:", "all_redcue:", r"curves: unknown key 'all_redcue'; did you mean 'all_r"),
        ("base_microseconds: 5", "base_microseconds: -5", r"must be 0 or more"),
        ("2: 100", "2.5: 100", r"2\.5 is not a number of ranks"),
        ("direct: true", "direct: 1", r"direct: expected true or false"),
    ],
)
def test_wrong_curves_are_refused(old: str, new: str, message: str) -> None:
    text = """{kind: nvlink, bandwidth_gb_per_second: 450, curves: {all_reduce: {
        base_microseconds: 5, direct: true, bandwidth_gb_per_second_by_ranks: {2: 100}}}}"""
    assert old in text
    assert read_link(yaml.safe_load(text), "here").curves[0][1].direct
    with pytest.raises(HardwareError, match=message):
        read_link(yaml.safe_load(text.replace(old, new)), "here")


def test_a_bare_bandwidth_gets_what_is_typical() -> None:
    link = read_link({"kind": "nvlink", "bandwidth_gb_per_second": 450}, "here")
    measured = LINKS["h100"]
    for operation in ("all_reduce", "all_gather", "all_to_all"):
        for size in (8 * KIB, 2 * MIB, 128 * MIB):
            estimate = link.collective_seconds(operation, size, 4)
            assert estimate == pytest.approx(
                measured.collective_seconds(operation, size, 4), rel=0.45
            )


# ------------------------------------------------------------------------------------ fits


def noisy(seconds: float, index: int) -> float:
    """Within 3 %, and one in eleven is disturbed to twice the time."""
    return seconds * (1 + 0.03 * ((37 * index) % 13 - 6) / 6) * (2 if index % 11 == 5 else 1)


def points_of(link: Link, operations: tuple[str, ...], sizes: list[int]) -> list[CollectivePoint]:
    cases = [(o, n, s) for o in operations for n in (2, 4, 8) for s in sizes]
    return [
        CollectivePoint(o, n, s, "eager", noisy(link.collective_seconds(o, s, n), i))
        for i, (o, n, s) in enumerate(cases)
    ]


def test_a_fit_finds_the_link_that_points_came_from() -> None:
    gather = replace(RING, bandwidth_by_ranks=((2, 180e9), (8, 250e9)))
    truth = Link("nvlink", 400e9, curves=(("all_reduce", RING), ("all_gather", gather)))
    sizes = [512 << shift for shift in range(0, 21, 2)]
    operations = ("all_reduce", "all_gather")
    fitted = fit_collectives(points_of(truth, operations, sizes), Link("nvlink", 400e9))
    cases = [(o, n, 3 * s) for o in operations for n in (2, 4, 8) for s in sizes[:-1]]
    found = [fitted.collective_seconds(o, s, n) for o, n, s in cases]
    true = [truth.collective_seconds(o, s, n) for o, n, s in cases]
    assert mean_error(found, true) < 0.04
    assert p90_error(found, true) < 0.12
    assert [name for name, _ in fitted.curves] == list(operations)
    again = fit_collectives(points_of(truth, operations, sizes), Link("nvlink", 400e9))
    assert again == fitted


def test_a_fit_learns_what_a_graph_saves() -> None:
    points = [
        CollectivePoint(
            "all_reduce", n, s, way, ONE.seconds("all_reduce", s, n, way == "eager"), True
        )
        for n in (2, 4, 8)
        for s in (512 << shift for shift in range(0, 21, 2))
        for way in ("eager", "graph")
    ]
    ((name, curve),) = fit_collectives(points, Link("nvlink", 400e9)).curves
    assert name == ONE_SHOT and curve.direct
    assert curve.host_seconds == pytest.approx(20e-6, rel=0.05)
    assert curve.copy_bytes_per_second == pytest.approx(2e12, rel=0.2)


@pytest.mark.parametrize("sizes", [[MIB], [4 * KIB, 64 * KIB, MIB]])
def test_a_few_points_of_one_group_suffice(sizes: list[int]) -> None:
    points = [CollectivePoint("all_reduce", 2, s, "eager", 400e-6 + s / 0.7e9) for s in sizes]
    link = fit_collectives(points, Link("loopback", 1e9, 50e-6, 400e-6))
    for point in points:
        found = link.collective_seconds("all_reduce", point.full_bytes, 2)
        assert found == pytest.approx(point.seconds, rel=0.1)
    assert link.collective_seconds("send", KIB, 2) == pytest.approx(451e-6, rel=0.01)


def test_points_that_cannot_be_are_refused() -> None:
    for point in (
        CollectivePoint("all_reduce", 1, 8, "eager", 1e-6),
        CollectivePoint("all_reduce", 2, 0, "eager", 1e-6),
        CollectivePoint("all_reduce", 2, 8, "eager", 0.0),
        CollectivePoint("reduce", 2, 8, "eager", 1e-6),
    ):
        with pytest.raises(HardwareError):
            fit_collectives([point], TOY)
    assert fit_collectives([], TOY) == TOY
    assert set(dict(TOY.curves)) <= set(CURVES)
