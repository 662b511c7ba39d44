"""Cluster files and the ring formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.errors import HardwareError
from parallel.hardware.catalogue import cluster_names, load_cluster
from parallel.hardware.facts import Cluster, DeviceType, Link, Node
from parallel.hardware.ring import OPERATIONS, ring_seconds
from parallel.units import GIB

CLUSTERS = Path(__file__).parents[1] / "configs" / "clusters"
COUNTS = {
    "2x8xa100": 16,
    "4xh100+4xl40s": 8,
    "4xl40s": 4,
    "8xb200": 8,
    "8xh100": 8,
    "8xh200": 8,
}
SMALL = """
nodes:
  - name: box
    devices:
      - type: {name: toy, kind: cuda, memory_gib: 2, bandwidth_gb_per_second: 100,
               teraflops: {bf16: 10, fp32: 1}}
        count: 3
    link: {kind: pcie, bandwidth_gb_per_second: 10, latency_microseconds: 1}
    cores: 4
    host_memory_gib: 8
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


# ---------------------------------------------------------------------------- cluster files


def test_every_cluster_file_is_known_here() -> None:
    assert set(cluster_names(CLUSTERS)) == {*COUNTS, "local"}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_cluster_by_name(name: str) -> None:
    cluster = load_cluster(name, CLUSTERS)
    assert cluster.name == name
    assert cluster.device_count == COUNTS[name]
    assert [device.index for device in cluster.devices] == list(range(COUNTS[name]))
    assert cluster.memory_bytes == sum(d.type.memory_bytes for d in cluster.devices)
    for device in cluster.devices:
        assert device.type.effective_flops_per_second("bf16") > 1e14
        assert device.type.effective_bandwidth_bytes_per_second > 0
        assert device.type.power_watts and device.type.dollars_per_hour


def test_known_figures() -> None:
    h100 = load_cluster("8xh100", CLUSTERS).devices[0].type
    assert h100.memory_bandwidth_bytes_per_second == 3.35e12
    assert h100.flops_per_second["bf16"] == 989e12
    assert h100.power_watts == 700
    assert load_cluster("2x8xa100", CLUSTERS).nodes[1].name == "node-1"
    mixed = load_cluster("4xh100+4xl40s", CLUSTERS)
    assert [d.type.name for d in mixed.devices] == ["h100"] * 4 + ["l40s"] * 4
    assert mixed.slowest_link(range(8)).kind == "pcie"


def test_cluster_from_a_path(tmp_path: Path) -> None:
    cluster = load_cluster(written(tmp_path, SMALL), CLUSTERS)
    assert (cluster.name, cluster.device_count) == ("mine", 3)
    assert cluster.memory_bytes == 6 * GIB
    assert cluster.devices[2].type.effective_flops_per_second("fp16") == 10e12
    assert cluster.devices[2].type.effective_flops_per_second("fp64") == 1e12


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(HardwareError, match=r"did you mean '8xh[12]00'.*2x8xa100.*local"):
        load_cluster("8xh101", CLUSTERS)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"can't read cluster file .*absent\.yaml"):
        load_cluster(tmp_path / "absent.yaml", CLUSTERS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latency_micro", "latncy_micro", r"nodes\[0\]\.link: .*did you mean 'latency_microsec"),
        ("memory_gib: 2", "memory_gb: 2", r"devices\[0\]\.type: unknown key 'memory_gb'"),
        ("memory_gib: 2,", "", r"'memory_gib' is missing"),
        ("memory_gib: 2,", "memory_gib: -2,", r"memory_gib: must be more than 0, got -2"),
        ("memory_gib: 2,", "memory_gib: true,", r"memory_gib: expected a number, got True"),
        ("memory_gib: 2,", "memory_gib: .nan,", r"memory_gib: expected a number, got nan"),
        ("bf16: 10", "bf61: 10", r"teraflops: unknown key 'bf61'; did you mean 'bf16'"),
        ("bf16: 10", "bf16: -1", r"teraflops\.bf16: must be more than 0"),
        ("count: 3", "count: 2.5", r"count: expected a whole number"),
        ("count: 3", "count: 0", r"count: must be more than 0"),
        ("kind: pcie", "kind: pci", r"link\.kind: unknown value 'pci'; did you mean 'pcie'"),
        ("cores: 4", "cores: 4\n    cores: 5", r"key 'cores' is given twice"),
        ("    link: {", "    network: {", r"unknown key 'network'"),
        ("nodes:", "nodes: {}\nx:", r"unknown key 'x'"),
        ("- name: box", "- name: box\n    count: 2", r"2 nodes need a 'network'"),
        ("- name: box", "- name: [box", r"is not valid YAML"),
        ("{name: toy, kind", "{name: toy, memory_efficiency: 1.5, kind", r"must be at most 1"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(HardwareError, match=message) as raised:
        load_cluster(written(tmp_path, SMALL.replace(old, new)), CLUSTERS)
    assert "mine.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping"),
        ("nodes: []", "expected a list of nodes"),
        ("probe: true\nnodes: []", "stands alone"),
        ("probe: 3", "stands alone"),
        (
            "nodes: [{name: a, devices: [{type: h10, count: 1}], cores: 1, host_memory_gib: 1}]",
            r"devices\[0\]\.type: unknown device type 'h10'; did you mean 'h100'",
        ),
        (
            "nodes: [{name: a, devices: [{type: h100, count: 1}, {type: l40s, count: 1}], "
            "cores: 1, host_memory_gib: 1}]",
            "'link' is missing",
        ),
        (
            "nodes: [{name: a, devices: [{type: h100, count: 1}], cores: 1, host_memory_gib: 1, "
            "link: {kind: pcie, bandwidth_gb_per_second: 1, latency_microseconds: 1, "
            "operations: [reduce]}}]",
            "unknown 'reduce'; legal: all_reduce",
        ),
    ],
)
def test_wrong_shapes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        load_cluster(written(tmp_path, text), CLUSTERS)


# --------------------------------------------------------------------------- ring formulas

TOY = DeviceType("toy", "cuda", GIB, 1e11, {"bf16": 1e13})
FAST = Link("nvlink", 100e9, latency_seconds=1e-6, base_seconds=5e-6)
NETWORK = Link("network", 10e9, latency_seconds=4e-6, base_seconds=9e-6)
TWO_NODES = Cluster(
    "two", tuple(Node(name, (TOY,) * 4, FAST, 8, GIB) for name in ("a", "b")), NETWORK
)


@pytest.mark.parametrize(
    ("operation", "seconds"),
    [
        ("all_reduce", 5e-6 + 6e-6 + 1.5 * 4e6 / 100e9),
        ("all_gather", 5e-6 + 3e-6 + 0.75 * 4e6 / 100e9),
        ("reduce_scatter", 5e-6 + 3e-6 + 0.75 * 4e6 / 100e9),
        ("broadcast", 5e-6 + 3e-6 + 4e6 / 100e9),
    ],
)
def test_collective_within_a_node(operation: str, seconds: float) -> None:
    assert TWO_NODES.collective_seconds(operation, 4e6, range(4)) == pytest.approx(seconds)
    assert FAST.collective_seconds(operation, 4e6, 4) == pytest.approx(seconds)


def test_send_and_single_rank() -> None:
    assert TWO_NODES.collective_seconds("send", 1e6, (0, 1)) == pytest.approx(16e-6)
    assert TWO_NODES.collective_seconds("send", 1e6, (3, 4)) == pytest.approx(113e-6)
    assert TWO_NODES.collective_seconds("all_reduce", 1e9, (5,)) == 0.0


def test_between_nodes_each_rank_brings_its_own_share() -> None:
    assert TWO_NODES.link(0, 3) == FAST
    assert TWO_NODES.link(3, 4) == NETWORK
    assert TWO_NODES.slowest_link(range(8)).bandwidth_bytes_per_second == 40e9
    assert TWO_NODES.slowest_link((0, 1, 4)).bandwidth_bytes_per_second == 10e9
    expected = 9e-6 + 14 * 4e-6 + 2 * 7 / 8 * 8e6 / 40e9
    assert TWO_NODES.collective_seconds("all_reduce", 8e6, range(8)) == pytest.approx(expected)


def test_bandwidth_by_group_size() -> None:
    link = Link("pcie", 32e9, 1e-6, bandwidth_by_ranks=((2, 16e9), (8, 1e9)))
    assert [link.bandwidth(n) for n in (2, 8, 16)] == pytest.approx([16e9, 1e9, 1e9])
    assert link.bandwidth(4) == pytest.approx(4e9)


def test_faults_of_a_question() -> None:
    with pytest.raises(HardwareError, match="did you mean 'all_reduce'"):
        TWO_NODES.collective_seconds("allreduce", 1.0, range(2))
    with pytest.raises(HardwareError, match=r"rank 8 has no device.*ranks 0 to 7"):
        TWO_NODES.collective_seconds("all_reduce", 1.0, (0, 8))
    with pytest.raises(HardwareError, match="at least two ranks"):
        TWO_NODES.slowest_link((1,))
    with pytest.raises(HardwareError, match="no network"):
        Cluster("split", TWO_NODES.nodes)
    with pytest.raises(HardwareError, match="no device"):
        Cluster("none", ())


@given(
    operation=st.sampled_from(OPERATIONS),
    few=st.floats(0, 1e9),
    more=st.floats(0, 1e9),
    ranks=st.integers(2, 64),
)
def test_more_bytes_and_more_ranks_take_longer(
    operation: str, few: float, more: float, ranks: int
) -> None:
    def seconds(size: float, count: int) -> float:
        return ring_seconds(operation, size, count, 5e-6, 1e-6, 1e10)

    assert seconds(few, ranks) <= seconds(few + more, ranks)
    assert seconds(few, ranks) <= seconds(few, ranks + 1)
    assert seconds(few, ranks) > 0


@given(size=st.floats(0, 1e9), ranks=st.integers(2, 8))
def test_halves_of_an_all_reduce(size: float, ranks: int) -> None:
    parts = sum(FAST.collective_seconds(op, size, ranks) for op in ("all_gather", "reduce_scatter"))
    assert parts - FAST.base_seconds == pytest.approx(
        FAST.collective_seconds("all_reduce", size, ranks)
    )


def test_a_message_takes_the_general_way() -> None:
    """Stages share memory for hidden states, processes don't for what they tell each other."""
    fast = Link("shared_memory", 5e9, base_seconds=1e-6, operations=("all_reduce", "send"))
    slow = Link("loopback", 1e9, base_seconds=1e-4)
    toy = load_cluster("8xh100", CLUSTERS).devices[0].type
    node = Node("box", (toy, toy), fast, 2, GIB, slow)
    two = Cluster("two", (node, node), Link("network", 1e9, base_seconds=1e-3))
    assert two.collective_seconds("send", 1000, (0, 1)) == pytest.approx(1.2e-6)
    assert two.message_seconds(1000, 0, 1) == pytest.approx(1.01e-4)
    assert two.message_seconds(1000, 1, 2) == pytest.approx(1.001e-3)
    alone = Cluster("one", (Node("box", (toy, toy), slow, 2, GIB),))
    assert alone.message_seconds(1000, 1, 0) == pytest.approx(1.01e-4)
