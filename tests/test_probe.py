"""This machine as a cluster: cores, memory and GPUs, within the limits of containers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from parallel.errors import HardwareError
from parallel.hardware.catalogue import load_cluster
from parallel.hardware.known import known_devices
from parallel.hardware.limits import memory_limit_bytes, usable_cores
from parallel.hardware.probe import NETWORK, SHARED_MEMORY, hosts_like, probe_local
from parallel.units import GIB

CLUSTERS = Path(__file__).parents[1] / "configs" / "clusters"


class NvmlError(Exception):
    pass


class FakeNvml:
    """Some GPUs of one name; `broken` makes the driver absent."""

    NVMLError: type[Exception] = NvmlError
    NVML_NVLINK_MAX_LINKS = 18
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2

    def __init__(self, name: str = "", count: int = 0, nvlinks: int = 0, fails: bool = False):
        self.name, self.count, self.nvlinks, self.fails = name, count, nvlinks, fails
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.name:
            raise NvmlError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: Any) -> bytes:
        return self.name.encode()

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return f"GPU-{handle}abc"

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        if self.fails:
            raise NvmlError("GPU is lost")
        return type("Memory", (), {"total": (10 + handle) * GIB})

    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int:
        if link >= self.nvlinks:
            raise NvmlError("not supported")
        return 1

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int:
        return 4

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> int:
        return 16

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        return (8, 6)

    def nvmlDeviceGetNumGpuCores(self, handle: Any) -> int:
        return 10000

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, clock: int) -> int:
        return {self.NVML_CLOCK_SM: 2000, self.NVML_CLOCK_MEM: 9000}[clock]

    def nvmlDeviceGetMemoryBusWidth(self, handle: Any) -> int:
        return 384

    def nvmlDeviceGetPowerManagementLimit(self, handle: Any) -> int:
        return 300_000


NO_GPU = FakeNvml()


def root_with(folder: Path, files: dict[str, str]) -> Path:
    meminfo = {"proc/meminfo": "MemTotal:  8388608 kB\nMemFree: 1 kB\n"}
    for name, text in {**meminfo, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_this_machine() -> None:
    cluster = probe_local(nvml=NO_GPU)
    cores = usable_cores()
    assert 1 <= cores <= len(os.sched_getaffinity(0))
    assert cluster.device_count == cores
    total = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
    assert 0.9 * memory_limit_bytes() < cluster.memory_bytes <= 1024 * int(total)
    assert {device.type.kind for device in cluster.devices} == {"cpu"}
    assert all(device.type.estimated for device in cluster.devices)


def test_local_by_name_and_for_some_ranks() -> None:
    cluster = load_cluster("local", CLUSTERS)
    assert cluster.name == "local"
    assert cluster.device_count >= 1
    assert load_cluster("local", CLUSTERS, ranks=1).device_count == 1


def test_ranks_share_the_cores(tmp_path: Path) -> None:
    root = root_with(tmp_path, {"proc/cpuinfo": "flags\t\t: fpu avx2 avx512f avx512_bf16\n"})
    cores = usable_cores(root)
    one, each, many = (probe_local(n, root=root, nvml=NO_GPU) for n in (1, cores, 4 * cores))
    assert [c.device_count for c in (one, each, many)] == [1, cores, 4 * cores]
    assert all(7.9 * GIB < c.memory_bytes <= 8 * GIB for c in (one, each, many))
    assert [c.devices[0].type.threads for c in (one, each, many)] == [cores, 1, 0.25]
    core = each.devices[0].type
    assert core.effective_bandwidth_bytes_per_second == pytest.approx(8.5e9, rel=0.01)
    assert core.effective_flops_per_second("bf16") == pytest.approx(205e9, rel=0.01)
    assert core.effective_flops_per_second("fp32") == pytest.approx(69e9, rel=0.01)
    quarter = many.devices[0].type
    assert quarter.effective_flops_per_second("bf16") == pytest.approx(205e9 / 4, rel=0.01)
    assert many.nodes[0].link.kind == "loopback"
    assert each.nodes[0].link_for("all_reduce").kind == "shared_memory"
    assert each.nodes[0].link_for("send").kind == "loopback"
    with pytest.raises(HardwareError, match="at least 1"):
        probe_local(0, root=root, nvml=NO_GPU)


def test_stages_send_through_memory_where_there_are_native_kernels(tmp_path: Path) -> None:
    flags = "avx512_bf16 avx512f avx512bw avx512dq avx512vl"
    root = root_with(tmp_path, {"proc/cpuinfo": f"flags\t\t: fpu {flags}\n"})
    each = probe_local(usable_cores(root), root=root, nvml=NO_GPU)
    assert each.devices[0].type.native_kernels
    assert each.nodes[0].link_for("send").kind == "shared_memory"
    assert each.nodes[0].link_for("all_gather").kind == "shared_memory"


def test_local_all_reduce_is_near_what_was_measured() -> None:
    measured = {4096: 7.6e-6, 1 << 20: 162e-6}
    for size, seconds in measured.items():
        predicted = SHARED_MEMORY.collective_seconds("all_reduce", size, 2)
        assert predicted == pytest.approx(seconds, rel=0.3)


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": f"{3 * GIB}",
                "sys/fs/cgroup/a/memory.max": f"{2 * GIB}",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/x\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{5 * GIB}\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/x\n",
                "sys/fs/cgroup/cpu,memory/x/memory.limit_in_bytes": f"{4 * GIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            4,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{99 * GIB}"}, 8),
    ],
)
def test_memory_limits(tmp_path: Path, files: dict[str, str], gib: int) -> None:
    root = root_with(tmp_path, files)
    assert memory_limit_bytes(root) == gib * GIB
    assert probe_local(2, root=root, nvml=NO_GPU).memory_bytes == gib * GIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
    ],
)
def test_core_limits(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert usable_cores(root_with(tmp_path, files), affinity=8) == cores


def test_a_machine_without_meminfo(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="MemTotal"):
        probe_local(root=tmp_path, nvml=NO_GPU)


def test_known_gpus() -> None:
    known = known_devices(CLUSTERS / "devices")
    nvml = FakeNvml("NVIDIA H100 80GB HBM3", count=4, nvlinks=18)
    cluster = probe_local(known=known, nvml=nvml, environment={})
    assert [d.type.name for d in cluster.devices] == ["h100"] * 4
    assert [d.type.memory_bytes for d in cluster.devices] == [(10 + i) * GIB for i in range(4)]
    assert cluster.nodes[0].link == known["h100"].link
    assert not cluster.devices[0].type.estimated
    assert nvml.open == 0
    assert probe_local(2, known=known, nvml=nvml, environment={}).device_count == 2
    with pytest.raises(HardwareError, match="5 ranks need a GPU each and 4 are visible"):
        probe_local(5, known=known, nvml=nvml, environment={})


def test_unknown_gpus_are_estimated() -> None:
    cluster = probe_local(nvml=FakeNvml("NVIDIA Toy", count=1), environment={})
    toy = cluster.devices[0].type
    assert (toy.name, toy.estimated, toy.power_watts) == ("NVIDIA Toy", True, 300)
    assert toy.flops_per_second["fp32"] == 2 * 10000 * 2e9
    assert toy.memory_bandwidth_bytes_per_second == 2 * 9e9 * 48
    assert cluster.nodes[0].link.kind == "pcie"
    joined = probe_local(nvml=FakeNvml("NVIDIA Toy", 2, nvlinks=4), environment={})
    assert joined.nodes[0].link.kind == "nvlink"
    assert joined.nodes[0].link.bandwidth_bytes_per_second == 100e9
    assert joined.nodes[0].link.bandwidth(2) == pytest.approx(70e9)


@pytest.mark.parametrize(
    ("visible", "memories"),
    [
        ("1,0", [11, 10]),
        ("2", [12]),
        ("GPU-2,GPU-0", [12, 10]),
        ("0,9,1", [10]),
    ],
)
def test_visible_gpus(visible: str, memories: list[int]) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    cluster = probe_local(nvml=FakeNvml("NVIDIA Toy", 3), environment=environment)
    assert [d.type.memory_bytes // GIB for d in cluster.devices] == memories


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_hidden_gpus_leave_the_cpu(visible: str) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    cluster = probe_local(nvml=FakeNvml("NVIDIA Toy", 3), environment=environment)
    assert cluster.devices[0].type.kind == "cpu"


def test_a_driver_that_fails_is_named() -> None:
    nvml = FakeNvml("NVIDIA Toy", 1, fails=True)
    with pytest.raises(HardwareError, match="GPU is lost"):
        probe_local(nvml=nvml, environment={})
    assert nvml.open == 0


def test_hosts_like_this_one_are_joined_by_a_network() -> None:
    machine = probe_local(2, known=known_devices(CLUSTERS / "devices"), nvml=FakeNvml())
    assert hosts_like(machine, 1) is machine
    three = hosts_like(machine, 3)
    assert [device.node for device in three.devices] == [0, 0, 1, 1, 2, 2]
    assert three.slowest_link((1, 2), "all_reduce") == NETWORK
    assert three.slowest_link((0, 1), "all_reduce") == machine.nodes[0].link
