"""From measurements to facts: overheads of layers and steps, and what a number of ranks gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parallel.calibration.bench import Timing, lower_quartile
from parallel.calibration.collectives import group_sizes
from parallel.calibration.document import by_ranks_document, measured_document, write_document
from parallel.calibration.machine import within_layers
from parallel.calibration.memory import cold_bytes, last_cache_bytes
from parallel.calibration.network import beside_computing
from parallel.calibration.overheads import (
    JointPoint,
    LayerPoint,
    StepPoint,
    WayPoint,
    fit_late,
    fit_layers,
    fit_steps,
    fit_ways,
    layer_error,
    nonnegative_fit,
)
from parallel.collectives.mesh import Mesh, MeshOptions
from parallel.devices.cpu import CpuDevice
from parallel.devices.fake import FakeCudaDevice
from parallel.errors import ConfigError, HardwareError
from parallel.hardware.catalogue import load_cluster
from parallel.hardware.curve import Curve
from parallel.hardware.device_fields import DEVICE_KEYS, device_document, read_device_type
from parallel.hardware.facts import Link
from parallel.hardware.fields import Fields
from parallel.hardware.overheads import Overheads, overheads_document, read_overheads
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits
from parallel.planner.room import Room
from parallel.runtime.job import RankJob
from parallel.runtime.step_timing import step_plan
from parallel.runtime.worker import Worker
from tests.specs import BIG, toy_cluster, toy_device

CLUSTERS = Path(__file__).parents[1] / "configs" / "clusters"
NOTES = {
    "date": "2026-01-02",
    "host": "box",
    "processor": "toy",
    "system": "Linux",
    "versions": {"torch": "2"},
    "seconds": 2.0,
    "ranks": 1,
}


# ------------------------------------------------------------------------------------ timings


def test_a_timing_is_what_is_usual_and_how_far_it_varies() -> None:
    timing = Timing.of([1.0, 9.0, 1.0, 2.0, 1.2])
    assert timing.seconds == 1.2 and timing.samples == 5
    assert timing.spread == pytest.approx(1.0)
    assert lower_quartile([3.0]) == 3.0
    assert lower_quartile([1.0, 2.0, 3.0, 4.0]) == 1.5


def test_groups_are_powers_of_two_and_all() -> None:
    assert [group_sizes(n) for n in (1, 2, 6, 8)] == [(), (2,), (2, 4, 6), (2, 4, 8)]


def test_last_cache(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "96M")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
    assert last_cache_bytes(tmp_path) == 96 << 20
    assert cold_bytes(CpuDevice(), 2, tmp_path) == 3 * (96 << 20) // 2
    (folder / "size").write_text("480M")
    assert cold_bytes(CpuDevice(), 2, tmp_path) == (480 + 256) // 2 << 20


# --------------------------------------------------------------------------------------- fits


@given(
    st.lists(st.floats(0.0, 1e3), min_size=3, max_size=3),
    st.integers(0, 2),
)
def test_a_sum_of_parts_is_taken_apart(parts: list[float], absent: int) -> None:
    parts[absent] = 0.0
    columns = [[1.0] * 6, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [1.0, 0.0, 5.0, 1.0, 0.0, 2.0]]
    seconds = [
        1e-3 + sum(p * c for p, c in zip(parts, row, strict=True))
        for row in zip(*columns, strict=True)
    ]
    found = nonnegative_fit(columns, seconds)
    assert all(value >= 0 for value in found)
    sums = [
        sum(f * c for f, c in zip(found, row, strict=True)) for row in zip(*columns, strict=True)
    ]
    assert sums == pytest.approx(seconds, rel=1e-4)


TRUE = Overheads(
    layer_seconds=100e-6,
    layer_sequence_seconds=5e-6,
    elementwise_bytes_per_second=8e9,
    cache_bytes_per_second=10e9,
    attention_flops_per_second=60e9,
    step_seconds=400e-6,
    sequence_seconds=20e-6,
)


LAYER = ((1536, 1024), (1024, 1024), (5632, 1024), (1024, 2816))


def layer_point(tokens: int, sequences: int, context: int) -> LayerPoint:
    moved, cached = 4e4 * tokens, 768.0 * sequences * context
    pairs = tokens * context if tokens == sequences else tokens * (tokens + 1) / 2
    flops = 2304.0 * pairs
    attention = 40e-6 + 5e-6 * sequences + cached / 10e9 + flops / 60e9
    return LayerPoint(
        tokens, sequences, moved, cached, flops, ((1, 1),), 1e-3, attention, 60e-6 + moved / 8e9
    )


def test_products_of_a_layer_take_what_they_take_there() -> None:
    """A quarter longer than alone with one row, as long with 64, and between them with 8."""
    device = replace(toy_device(), row_factors=((1, 1.2), (8, 1.0), (64, 0.5)))
    points = [
        replace(
            layer_point(tokens, 1, tokens),
            products_seconds=longer
            * sum(device.product_seconds(tokens, *shape, "bf16", "bf16") for shape in LAYER),
            shapes=LAYER,
        )
        for tokens, longer in ((1, 1.25), (64, 1.0))
    ]
    found = within_layers(device, points).row_factors
    assert found == ((1, 1.5), (8, 1.125), (64, 0.5))
    plain = replace(device, row_factors=())
    assert within_layers(plain, points) is plain


def test_overheads_are_found_again() -> None:
    points = [layer_point(s, s, c) for s in (1, 4, 16) for c in (128, 1024)]
    points += [layer_point(n, 1, n) for n in (16, 128, 512)]
    found = fit_layers(points)
    steps = [StepPoint(n, 400e-6 + 20e-6 * n) for n in (1, 4, 16)]
    assert overheads_document(fit_steps(steps, found)) == pytest.approx(
        overheads_document(TRUE), rel=2e-3
    )
    assert layer_error(points, found) < 1e-3


def joint_point(collectives: int, computed: float, each: float = 20e-6) -> JointPoint:
    late = collectives * 5e-6 + computed * 0.04
    return JointPoint(
        collectives, computed + collectives * each + late, computed, collectives * each
    )


def test_waiting_for_the_last_rank_is_found_again() -> None:
    points = [joint_point(48, 0.01), joint_point(48, 0.04), joint_point(20, 0.1)]
    found = fit_late(points, TRUE)
    assert found.late_seconds == pytest.approx(5e-6, rel=1e-2)
    assert found.late_share == pytest.approx(0.04, rel=1e-2)
    assert found.late(10, 0.5) == pytest.approx(50e-6 + 0.02, rel=1e-2)


def test_who_never_waits_loses_nothing_by_it() -> None:
    quick = [JointPoint(48, 0.010, 0.0099, 2e-4), JointPoint(48, 0.040, 0.0400, 1e-4)]
    found = fit_late(quick, TRUE)
    assert (found.late_seconds, found.late_share) == (0.0, 0.0)
    assert fit_late([], TRUE) == TRUE


def test_between_hosts_what_nobody_waits_for_is_the_networks() -> None:
    """Of 8 collectives in a row each takes 3 ms, in a step 4 ms, and the last rank is awaited for
    2 ms beside. Lateness is those 2 ms; the link's sums start 1 ms later, its sends as before."""
    curve = Curve(((2, 1e9),), 3e-3, bulk_base_seconds=50e-3)
    curves = (("all_reduce", curve), ("all_to_all", curve))
    link = Link("network", 1e9, operations=("all_reduce", "send"), curves=curves)
    alone = link.collective_seconds("all_reduce", 1000, 2)
    points = [
        JointPoint(8, 0.1 + 8 * (alone + 1e-3) + 2e-3, 0.1, 8 * alone, 1000, 2e-3) for _ in range(3)
    ]
    assert all(p.late_seconds == 2e-3 for p in points)
    found = beside_computing(link, points, 2)
    assert found.collective_seconds("all_reduce", 1000, 2) == pytest.approx(alone + 1e-3, rel=1e-3)
    assert found.collective_seconds("send", 1000, 2) == link.collective_seconds("send", 1000, 2)
    assert beside_computing(link, [], 2) == link
    unknown = [replace(p, waiting_seconds=None) for p in points]
    assert beside_computing(link, unknown, 2) == link
    assert unknown[0].late_seconds == pytest.approx(8e-3 + 2e-3)


def way_point(stages: int, in_flight: float, busy: float, way: float) -> WayPoint:
    """Equal stages; the leader's host work and all sends take 1 ms together."""
    path = stages * busy + 1e-3
    seconds = max(in_flight * (busy + way), path + (stages - 1) * way)
    return WayPoint(stages, in_flight, seconds, busy, path)


@given(st.integers(2, 6), st.floats(0, 0.01), st.floats(1e-3, 0.1))
def test_what_receiving_costs_is_found_again(stages: int, way: float, busy: float) -> None:
    """Whether the slowest stage limits the pipeline, or the way through all of them."""
    points = [way_point(stages, flying, busy, way) for flying in (1.0, stages, 2 * stages)]
    assert fit_ways(points, TRUE).way_seconds == pytest.approx(way, rel=1e-3, abs=1e-9)
    assert fit_ways([], TRUE) == TRUE


def test_a_disturbed_pipeline_says_nothing() -> None:
    """One of five that was measured while something else ran; and stages that were slow alone."""
    points = [*[way_point(2, 2.0, 0.01, 2e-3)] * 4, way_point(2, 2.0, 0.01, 0.5)]
    assert fit_ways(points, TRUE).way_seconds == pytest.approx(2e-3, rel=1e-3)
    slow = replace(points[0], receiving_seconds=0.03)
    assert fit_ways([slow], TRUE).way_seconds == 0.0


def test_seconds_of_a_layer_and_of_a_step() -> None:
    assert TRUE.layer(2, 8e3, 1e4, 6e4) == pytest.approx(113e-6)
    assert TRUE.step(3, 1000) == pytest.approx(460e-6)
    assert Overheads().layer(5, 1e9, 1e9, 1e9) == Overheads().step(5, 10) == 0.0


@given(
    st.builds(
        Overheads,
        layer_seconds=st.floats(0, 1),
        elementwise_bytes_per_second=st.none() | st.floats(1e6, 1e13),
        logit_seconds=st.floats(0, 1e-3),
        plain_product_share=st.floats(0.01, 1),
        late_seconds=st.floats(0, 1e-3),
        late_share=st.floats(0, 2),
        way_seconds=st.floats(0, 1e-2),
    )
)
def test_overheads_are_read_back(overheads: Overheads) -> None:
    found = read_overheads(overheads_document(overheads), "here")
    assert overheads_document(found) == pytest.approx(overheads_document(overheads))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"layer_seconds": 1}, "unknown key 'layer_seconds'"),
        ({"layer_microseconds": -1}, "must be 0 or more"),
        ({"cache_gb_per_second": 0}, "must be more than 0"),
        (3, "expected a mapping"),
    ],
)
def test_bad_overheads_are_refused(value: object, words: str) -> None:
    with pytest.raises(HardwareError, match=words):
        read_overheads(value, "here")


def test_rows_with_kernels_of_their_own() -> None:
    plain = toy_device(launch_seconds=1e-5)
    device = replace(plain, row_factors=((2, 1.5), (8, 0.75)))
    found = [
        device.product_seconds(n, 64, 64, "bf16", "bf16")
        / plain.product_seconds(n, 64, 64, "bf16", "bf16")
        for n in (1, 2, 4, 8, 100)
    ]
    assert found == pytest.approx([1.5, 1.5, (1.5 * 0.75) ** 0.5, 0.75, 0.75])
    read = read_device_type(Fields(device_document(device), "here", DEVICE_KEYS))
    assert read.row_factors == device.row_factors
    for bad in ({0: 1}, {2: -1}, {"two": 1}):
        body = {**device_document(device), "row_factors": bad}
        with pytest.raises(HardwareError, match="row_factors"):
            read_device_type(Fields(body, "here", DEVICE_KEYS))


# ----------------------------------------------------------------------------------- documents


def described(ranks: int) -> dict[str, Any]:
    device = toy_device(8.0 / ranks, threads=4 / ranks)
    return measured_document(toy_cluster(*[device] * ranks), {**NOTES, "ranks": ranks})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "here.yaml"
    write_document(path, by_ranks_document({n: described(n) for n in (1, 4)}))
    return path


@pytest.mark.parametrize(
    ("ranks", "devices", "threads", "gib"),
    [(1, 1, 4, 8), (4, 4, 1, 2), (None, 4, 1, 2), (2, 2, 1, 4)],
)
def test_a_number_of_ranks_gets_its_description(
    file: Path, ranks: int | None, devices: int, threads: float, gib: float
) -> None:
    """In between: the devices of the next larger number, which share all of the memory."""
    cluster = load_cluster(file, CLUSTERS, ranks)
    assert cluster.name == "here" and cluster.device_count == devices
    assert {d.type.threads for d in cluster.devices} == {threads}
    assert {d.type.memory_bytes for d in cluster.devices} == {gib * 2**30}


def test_more_ranks_than_were_measured_are_refused(file: Path) -> None:
    with pytest.raises(HardwareError, match=r"describes 1, 4 ranks and 5 .*ranks=\[1, 4, 5\]"):
        load_cluster(file, CLUSTERS, 5)


def test_what_is_said_once(file: Path) -> None:
    body = yaml.safe_load(file.read_text())
    assert body["calibration"]["host"] == "box" and body["calibration"]["seconds"] == 4.0
    assert body["by_ranks"][4]["calibration"] == {"seconds": 2.0, "ranks": 4}
    assert [p.name for p in file.parent.iterdir()] == ["here.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("by_ranks: 3", "expected a mapping from numbers"),
        ("by_ranks: {}", "is missing|expected a mapping"),
        ("by_ranks: {two: {}}", "'two' is not a number of ranks"),
        ("by_ranks: {0: {}}", "0 is not a number of ranks"),
        ("by_ranks: {1: {by_ranks: {1: {}}}}", "can't be within another"),
        ("{by_ranks: {1: {}}, probe: true}", "stands alone"),
        ("by_ranks: {1: {nodes: []}}", r"by_ranks\.1\.nodes: expected a list"),
    ],
)
def test_bad_descriptions_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(HardwareError, match=words):
        load_cluster(path, CLUSTERS)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken.yaml").mkdir()
    with pytest.raises(ConfigError, match="output="):
        write_document(tmp_path / "taken.yaml", described(1))
    assert [p.name for p in tmp_path.iterdir()] == ["taken.yaml"]


NCCL, CONTEXT = 342 << 20, 500 << 20


@pytest.mark.parametrize(("kind", "measured"), [("cuda", CONTEXT), ("cpu", CONTEXT + NCCL + 7)])
def test_communicators_of_nccl_are_no_runtime(
    monkeypatch: pytest.MonkeyPatch, kind: str, measured: int
) -> None:
    """They are planned apart; what gloo holds is the runtime's, and so is a front on the host."""
    device = FakeCudaDevice()
    held = [CONTEXT]
    monkeypatch.setattr(device, "kind", kind)
    monkeypatch.setattr(device, "context_bytes", lambda: sum(held))
    create = Mesh.create

    def opened(*arguments: Any) -> Mesh:
        held.append(NCCL)
        return create(*arguments)

    monkeypatch.setattr(Mesh, "create", opened)
    job = RankJob(
        step_plan(1, toy_cluster(toy_device(kind=kind))),
        0,
        device,
        MeshOptions(),
        make_worker=cast(type[Worker], _NoWorker),
        beside_bytes=7,
    )
    job.close()
    assert job.runtime_bytes == measured


class _NoWorker:
    def __init__(self, plan: object, rank: int, mesh: Mesh, device: object, ledger: Ledger):
        self.mesh, self.ledger = mesh, ledger


def test_a_calibrated_plan_counts_nccl_once() -> None:
    """Runtime as it was measured, and a communicator for each axis beside it."""
    device = toy_device(16.0, kind="cuda", runtime_bytes=CONTEXT, fragmentation=0.0)
    cluster, layout = toy_cluster(device, device), Layout.make(BIG, Degrees(2))
    room = Room.of(layout, cluster, choose_formats(BIG), EngineLimits(), Budget())
    for memory in room.memory(4):
        assert memory.communication == NCCL
        assert CONTEXT <= memory.runtime < CONTEXT + NCCL
