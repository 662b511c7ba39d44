"""This machine as a cluster of one node: its GPUs, or its cores shared among the ranks.

Nothing is measured here. A core's figures are estimates: effective rates seen on a server
core of 2022 with avx512_bf16 (8.5 GB/s for one row times a bf16 matrix, 25 with native kernels,
205 GFLOP/s bf16 and 69 fp32 at 1024 rows; two threads together 1.4 and 1.8 times that).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from parallel.errors import HardwareError
from parallel.hardware.facts import Cluster, DeviceType, Link, Node
from parallel.hardware.known import KnownDevice
from parallel.hardware.limits import cpp_compiler, cpu_flags, memory_limit_bytes, usable_cores
from parallel.hardware.nvml import Nvml, find_gpus
from parallel.units import MIB

_MEMORY_EXPONENT = 0.5
"""Two threads read 1.4 times what one reads: they share a memory bus."""
_COMPUTE_EXPONENT = 0.86
_CORE_BANDWIDTH = 14e9
_MEMORY_EFFICIENCY = 0.61
_NATIVE_BANDWIDTH, _NATIVE_EFFICIENCY = 27e9, 0.92
"""From huge pages."""
_NATIVE_FLAGS = frozenset({"avx512_bf16", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""What the kernels of devices/native are written for."""
_COMPUTE_EFFICIENCY = 0.8
_RUNTIME_BYTES = 320 * MIB
"""Resident before the model: 247 MiB; kernels add code and scratch."""
_CORE_FLOPS = (
    ("amx_bf16", {"bf16": 1000e9, "fp16": 86e9, "fp32": 86e9}),
    ("avx512_bf16", {"bf16": 256e9, "fp16": 86e9, "fp32": 86e9}),
    ("avx512f", {"bf16": 60e9, "fp16": 60e9, "fp32": 86e9}),
    ("avx2", {"bf16": 35e9, "fp16": 35e9, "fp32": 50e9}),
    ("bf16", {"bf16": 100e9, "fp16": 50e9, "fp32": 40e9}),
    ("", {"bf16": 12e9, "fp16": 12e9, "fp32": 20e9}),
)
"""Peak per core by the best instruction set it has (`bf16` is ARM's)."""
SHARED_MEMORY = Link(
    kind="shared_memory",
    bandwidth_bytes_per_second=5.5e9,
    latency_seconds=2e-6,
    base_seconds=4e-6,
    operations=("all_reduce", "all_gather", "send"),
)
"""All-reduce over shared memory by busy waiting; 2 ranks took 7.6 µs at 4 KiB, 25 at 64 KiB,
162 at 1 MiB."""
LOOPBACK = Link(
    kind="loopback",
    bandwidth_bytes_per_second=0.7e9,
    latency_seconds=50e-6,
    base_seconds=400e-6,
)
"""TCP on one host (gloo): an all-reduce of 2 ranks took 0.5 ms to 64 KiB, 24 ms at 16 MiB."""


NETWORK = replace(LOOPBACK, kind="network")
"""Between hosts of which nothing is known but that they reach each other."""


def hosts_like(machine: Cluster, count: int) -> Cluster:
    """So many hosts like a machine of one node, `machine` itself where it is one."""
    if count == 1:
        return machine
    (node,) = machine.nodes
    return Cluster(machine.name, (node,) * count, NETWORK)


def probe_local(
    ranks: int | None = None,
    *,
    name: str = "local",
    known: Mapping[str, KnownDevice] | None = None,
    root: Path = Path("/"),
    nvml: Nvml | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster:
    """This machine, for `ranks` processes; one for each GPU or each core by default.

    GPUs take one rank each, and more ranks than GPUs are a `HardwareError`. Without a GPU
    the ranks divide cores and memory among them, more ranks than cores included."""
    if ranks is not None and ranks < 1:
        raise HardwareError(f"{ranks} ranks can't share a machine; give at least 1")
    gpus = find_gpus(known or {}, nvml, environment)
    cores = usable_cores(root)
    memory_bytes = memory_limit_bytes(root)
    if gpus is not None:
        if ranks is not None and ranks > len(gpus.types):
            raise HardwareError(
                f"{ranks} ranks need a GPU each and {len(gpus.types)} are visible; take fewer "
                "ranks, show more GPUs (CUDA_VISIBLE_DEVICES) or hide them all to use the CPU"
            )
        return Cluster(
            name,
            (
                Node(
                    name=platform.node() or name,
                    devices=gpus.types[:ranks],
                    link=gpus.link,
                    cores=cores,
                    host_memory_bytes=memory_bytes,
                ),
            ),
        )
    count = cores if ranks is None else ranks
    device = _cpu(cores / count, memory_bytes // count, cpu_flags(root))
    alone = count <= cores
    return Cluster(
        name,
        (
            Node(
                name=platform.node() or name,
                devices=(device,) * count,
                link=_shared_memory(device) if alone else LOOPBACK,
                cores=cores,
                host_memory_bytes=memory_bytes,
                general_link=LOOPBACK if alone else None,
            ),
        ),
    )


def _shared_memory(device: DeviceType) -> Link:
    """Stages send through it by the native kernels (collectives/channels.py)."""
    if device.native_kernels:
        return SHARED_MEMORY
    return replace(SHARED_MEMORY, operations=("all_reduce", "all_gather"))


def _cpu(threads: float, memory_bytes: int, flags: frozenset[str]) -> DeviceType:
    """`threads` cores as one device; rates grow less than the threads, as they were seen to."""
    flops = next(rates for flag, rates in _CORE_FLOPS if not flag or flag in flags)
    whole = max(threads, 1.0)
    share = min(threads, 1.0)
    native = flags >= _NATIVE_FLAGS and cpp_compiler() is not None
    bandwidth = _NATIVE_BANDWIDTH if native else _CORE_BANDWIDTH
    return DeviceType(
        name="cpu",
        kind="cpu",
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_second=bandwidth * share * whole**_MEMORY_EXPONENT,
        flops_per_second={
            name: rate * share * whole**_COMPUTE_EXPONENT for name, rate in flops.items()
        },
        memory_efficiency=_NATIVE_EFFICIENCY if native else _MEMORY_EFFICIENCY,
        compute_efficiency=_COMPUTE_EFFICIENCY,
        launch_seconds=4e-6,
        runtime_bytes=_RUNTIME_BYTES,
        threads=threads,
        native_kernels=native,
        estimated=True,
    )
