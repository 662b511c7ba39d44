"""Products on devices, their fit, and clusters written and read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.calibration.fit import ProductPoint, fit_products, mean_error
from parallel.errors import HardwareError
from parallel.hardware.catalogue import cluster_names, load_cluster, read_cluster
from parallel.hardware.curve import Curve
from parallel.hardware.device_fields import device_document, read_device_type
from parallel.hardware.facts import Cluster, DeviceType, Link, Node
from parallel.hardware.fields import Fields
from parallel.hardware.known import known_devices
from parallel.hardware.overheads import Overheads
from parallel.hardware.products import Arithmetic
from parallel.hardware.writing import cluster_document
from parallel.units import GIB, MIB

CLUSTERS = Path(__file__).parents[1] / "configs" / "clusters"
KNOWN = known_devices(CLUSTERS / "devices")
FP8 = Arithmetic(0.7, 5e-10, 2e-6, 5e-9, 4.0, 1.0)
TOY = DeviceType(
    "toy",
    "cuda",
    80 * GIB,
    2e12,
    {"bf16": 500e12, "fp8": 1000e12},
    memory_efficiency=0.8,
    compute_efficiency=0.75,
    launch_seconds=3e-6,
    serial_seconds=3e-10,
    arithmetic={"fp8": FP8},
    cache_bytes=48 * MIB,
    cache_bandwidth_bytes_per_second=8e12,
)


def test_a_product_by_hand() -> None:
    small = TOY.product_seconds(1, 4096, 4096, "bf16", "bf16")
    read = 2 * (4096 * 4096 + 4096 + 4096) / (0.8 * 2e12)
    assert small == pytest.approx(3e-6 + 4096 * 3e-10 + read, rel=1e-3)
    large = TOY.product_seconds(8192, 8192, 8192, "bf16", "bf16")
    assert large == pytest.approx(2 * 8192**3 / (0.75 * 500e12), rel=0.02)
    narrow = TOY.product_seconds(1, 4096, 4096, "fp8", "fp8")
    scaling = 2e-6 + 5e-9 + (4.0 * 4096 + 4096) / (0.8 * 2e12)
    held = (4096 * 4096 + 3 * 4096) / (0.8 * 2e12)
    assert narrow == pytest.approx(3e-6 + 4096 * 5e-10 + held + scaling, rel=1e-3)


def test_a_cache_serves_benchmarks_alone() -> None:
    cold = TOY.product_seconds(1, 1024, 1024, "bf16", "bf16")
    warm = TOY.product_seconds(1, 1024, 1024, "bf16", "bf16", repeated=True)
    assert cold - warm == pytest.approx(2 * MIB * (1 / 1.6e12 - 1 / 8e12), rel=0.02)
    large = TOY.product_seconds(1, 8192, 8192, "bf16", "bf16")
    assert TOY.product_seconds(1, 8192, 8192, "bf16", "bf16", True) == pytest.approx(
        large, rel=1e-6
    )


@given(
    name=st.sampled_from(sorted(KNOWN)),
    rows=st.integers(1, 20000),
    columns=st.integers(1, 20000),
    inner=st.integers(1, 20000),
    add=st.integers(0, 20000),
    repeated=st.booleans(),
)
@settings(max_examples=200)
def test_larger_products_take_longer(
    name: str, rows: int, columns: int, inner: int, add: int, repeated: bool
) -> None:
    device = KNOWN[name].type

    def seconds(m: int, n: int, k: int) -> float:
        return device.product_seconds(m, n, k, "bf16", "bf16", repeated)

    least = seconds(rows, columns, inner)
    assert least > device.launch_seconds
    for larger in (
        (rows + add, columns, inner),
        (rows, columns + add, inner),
        (rows, columns, inner + add),
    ):
        assert least <= seconds(*larger) * (1 + 1e-12)


MEASURED = [
    # GPU, format, rows, columns, inner, microseconds
    ("h100", "bf16", 1, 8192, 2048, 13.88),
    ("h100", "bf16", 2048, 8192, 8192, 366.3),
    ("h100", "fp8", 8192, 10240, 8192, 997.6),
    ("h100", "fp8", 32, 5120, 7168, 22.26),
    ("b200", "bf16", 32, 4096, 8192, 14.77),
    ("b200", "bf16", 8192, 7168, 1024, 81.25),
    ("l40s", "bf16", 512, 5120, 7168, 198.1),
    ("l40s", "fp8", 8, 8192, 5120, 71.91),
]


@pytest.mark.parametrize(("gpu", "name", "rows", "columns", "inner", "micro"), MEASURED)
def test_shipped_devices_are_near_what_was_measured(
    gpu: str, name: str, rows: int, columns: int, inner: int, micro: float
) -> None:
    found = KNOWN[gpu].type.product_seconds(rows, columns, inner, name, name, repeated=True)
    assert found == pytest.approx(1e-6 * micro, rel=0.15)


# ------------------------------------------------------------------------------------- fits

SHAPES = [
    (m, n, k) for m in (1, 8, 64, 512, 4096) for n in (1024, 4096, 8192) for k in (1024, 4096, 8192)
]


def measured(device: DeviceType, formats: tuple[str, ...]) -> list[ProductPoint]:
    """Within 3 %, one in thirteen disturbed to twice the time."""
    cases = [(f, *shape) for f in formats for shape in SHAPES]
    return [
        ProductPoint(m, n, k, f, f, device.product_seconds(m, n, k, f, f) * disturbed(i))
        for i, (f, m, n, k) in enumerate(cases)
    ]


def disturbed(index: int) -> float:
    return (1 + 0.03 * ((37 * index) % 11 - 5) / 5) * (2 if index % 13 == 6 else 1)


def test_a_fit_finds_the_device_that_points_came_from() -> None:
    start = replace(
        TOY,
        memory_efficiency=0.9,
        compute_efficiency=0.6,
        launch_seconds=1e-6,
        serial_seconds=0.0,
        arithmetic={},
    )
    fitted = fit_products(measured(TOY, ("bf16", "fp8")), start)
    assert fitted.memory_efficiency == pytest.approx(0.8, rel=0.05)
    assert fitted.compute_efficiency == pytest.approx(0.75, rel=0.05)
    assert fitted.launch_seconds == pytest.approx(3e-6, rel=0.15)
    assert fitted.arithmetic["fp8"].compute_efficiency == pytest.approx(0.7, rel=0.1)
    for name in ("bf16", "fp8"):
        found = [fitted.product_seconds(m + 5, n, k, name, name) for m, n, k in SHAPES]
        true = [TOY.product_seconds(m + 5, n, k, name, name) for m, n, k in SHAPES]
        assert mean_error(found, true) < 0.03
    assert fit_products(measured(TOY, ("bf16", "fp8")), start) == fitted


def test_a_processor_may_be_better_than_its_rule_of_thumb() -> None:
    truth = DeviceType("cpu", "cpu", GIB, 30e9, {"bf16": 400e9}, launch_seconds=4e-6)
    guess = replace(truth, memory_bandwidth_bytes_per_second=14e9, flops_per_second={"bf16": 200e9})
    fitted = fit_products(measured(truth, ("bf16",)), guess)
    assert fitted.memory_efficiency <= 1.0 and fitted.compute_efficiency <= 1.0
    assert fitted.effective_bandwidth_bytes_per_second == pytest.approx(30e9, rel=0.05)
    assert fitted.effective_flops_per_second("bf16") == pytest.approx(400e9, rel=0.05)


def test_fits_of_nothing_and_of_nonsense() -> None:
    assert fit_products([], TOY) == TOY
    with pytest.raises(HardwareError, match="rows, columns and a time"):
        fit_products([ProductPoint(1, 1, 1, "bf16", "bf16", 0.0)], TOY)


# -------------------------------------------------------------------------- written clusters


def through_yaml(cluster: Cluster) -> Cluster:
    text = yaml.safe_dump(cluster_document(cluster))
    return read_cluster(yaml.safe_load(text), f"{cluster.name}.yaml", {})


@pytest.mark.parametrize("name", [n for n in cluster_names(CLUSTERS) if n != "local"])
def test_shipped_clusters_survive_writing(name: str) -> None:
    cluster = load_cluster(name, CLUSTERS)
    assert through_yaml(cluster) == cluster


def quantity(unit: float, least: float = 0.001) -> st.SearchStrategy[float]:
    """As a file says it: a number of three decimals, times the unit."""
    return st.integers(max(1, int(least * 1000)), 10**7).map(lambda n: unit * (n / 1000))


LINKS = st.builds(
    Link,
    kind=st.sampled_from(("nvlink", "pcie", "network", "loopback", "shared_memory")),
    bandwidth_bytes_per_second=quantity(1e9),
    latency_seconds=quantity(1e-6),
    base_seconds=quantity(1e-6) | st.just(0.0),
    operations=st.just(("all_reduce",)) | st.just(Link("pcie", 1.0).operations),
    curves=st.lists(
        st.tuples(
            st.sampled_from(("all_reduce", "all_gather", "all_to_all", "one_shot")),
            st.builds(
                Curve,
                bandwidth_by_ranks=st.tuples(st.tuples(st.just(2), quantity(1e9))),
                base_seconds=quantity(1e-6),
                hop_seconds=quantity(1e-6) | st.just(0.0),
                quick_share=quantity(1.0),
                bulk_base_seconds=st.none() | quantity(1e-6),
                ramp_bytes=quantity(1e3) | st.just(0.0),
                quick_limit_bytes=st.none() | quantity(1e3),
                direct=st.booleans(),
                host_seconds=quantity(1e-6),
                copy_bytes_per_second=st.none() | quantity(1e9),
            ),
        ),
        max_size=1,
    ).map(tuple),
)
DEVICES: st.SearchStrategy[DeviceType] = st.builds(
    DeviceType,
    name=st.sampled_from(("x", "y z")),
    kind=st.sampled_from(("cpu", "cuda")),
    memory_bytes=st.integers(1, 1 << 45),
    memory_bandwidth_bytes_per_second=quantity(1e9),
    flops_per_second=st.fixed_dictionaries({"bf16": quantity(1e12), "fp32": quantity(1e12)}),
    memory_efficiency=st.floats(0.01, 1.0),
    launch_seconds=quantity(1e-6) | st.just(0.0),
    serial_seconds=quantity(1e-9) | st.just(0.0),
    overlap_sharpness=st.floats(1, 8),
    arithmetic=st.just({}) | st.just({"fp8": Arithmetic(0.5, 1e-9 * 0.25, scaling_seconds=2e-6)}),
    cache_bytes=st.integers(0, 1 << 40),
    runtime_bytes=st.integers(0, 1 << 40),
    fragmentation=st.floats(0, 2),
    power_watts=st.none() | st.floats(0, 2000),
    dollars_per_hour=st.none() | st.floats(0, 100),
    threads=st.floats(0.1, 256),
    estimated=st.booleans(),
    overheads=st.none() | st.just(Overheads(layer_seconds=1e-6 * 25.0)),
)


@given(
    groups=st.lists(st.tuples(DEVICES, st.integers(1, 3)), min_size=1, max_size=2),
    link=LINKS,
    general=st.none() | LINKS,
    network=LINKS,
    host=st.integers(1, 1 << 45),
)
@settings(max_examples=100, deadline=None)
def test_any_cluster_survives_writing(
    groups: list[tuple[DeviceType, int]], link: Link, general: Link | None, network: Link, host: int
) -> None:
    devices = tuple(device for device, count in groups for _ in range(count))
    nodes = tuple(Node(name, devices, link, 4, host, general) for name in ("a", "b"))
    cluster = Cluster("written", nodes, network)
    assert through_yaml(cluster) == cluster


def test_what_formats_do_differently_is_read_strictly() -> None:
    document: dict[str, Any] = device_document(TOY)
    assert read_device_type(Fields(document, "here", document)) == TOY
    document["arithmetic"]["fp8"]["scaling"] = 1
    with pytest.raises(HardwareError, match=r"arithmetic\.fp8: unknown key 'scaling'"):
        read_device_type(Fields(document, "here", document))
