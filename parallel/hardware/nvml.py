"""GPUs as the driver's management library (NVML) describes them.

Written against the documented API and tried with a stand-in for the library: no GPU was at
hand when it was written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import pynvml  # type: ignore[import-untyped]

from parallel.errors import HardwareError
from parallel.hardware.facts import DeviceType, Link
from parallel.hardware.known import KnownDevice
from parallel.hardware.typical import typical_link
from parallel.units import GIB

_NVLINK_GB_PER_SECOND = {8: 25.0, 9: 25.0, 10: 50.0}
"""Per link and direction, by major compute capability (NVLink 3, 4, 5)."""
_PCIE_GB_PER_SECOND_PER_LANE = {3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
_TENSOR_CORE_FACTOR = {(7, 0): 8, (7, 5): 8, (8, 0): 16, (9, 0): 15, (10, 0): 16}
"""Dense half-precision rate over the fp32 rate; 4 elsewhere (workstation and inference parts)."""


class Nvml(Protocol):
    """The part of `pynvml` that is used."""

    NVMLError: type[Exception]
    NVML_NVLINK_MAX_LINKS: int
    NVML_CLOCK_SM: int
    NVML_CLOCK_MEM: int

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int: ...
    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int: ...
    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> int: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]: ...
    def nvmlDeviceGetNumGpuCores(self, handle: Any) -> int: ...
    def nvmlDeviceGetMaxClockInfo(self, handle: Any, clock: int) -> int: ...
    def nvmlDeviceGetMemoryBusWidth(self, handle: Any) -> int: ...
    def nvmlDeviceGetPowerManagementLimit(self, handle: Any) -> int: ...


@dataclass(frozen=True)
class Gpus:
    """The visible GPUs of this machine, in order, and what joins them."""

    types: tuple[DeviceType, ...]
    link: Link


def find_gpus(
    known: Mapping[str, KnownDevice],
    nvml: Nvml | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Gpus | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; None without a driver or a visible GPU."""
    library = cast(Nvml, pynvml) if nvml is None else nvml
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    try:
        handles = _visible(library, environment.get("CUDA_VISIBLE_DEVICES"))
        if not handles:
            return None
        found = [_describe(library, handle, known) for handle in handles]
        links = [_link(library, h, device) for h, device in zip(handles, found, strict=True)]
    except library.NVMLError as error:
        raise HardwareError(
            f"the NVIDIA driver answered '{error}' when asked for its GPUs; set "
            "CUDA_VISIBLE_DEVICES='' to use the CPU, or give a cluster YAML file"
        ) from None
    finally:
        library.nvmlShutdown()
    slowest = min(links, key=lambda link: link.bandwidth_bytes_per_second)
    return Gpus(tuple(device.type for device in found), slowest)


def _visible(nvml: Nvml, wanted: str | None) -> list[Any]:
    """As CUDA reads the variable: numbers or UUID prefixes, up to the first that is none."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if wanted is None:
        return handles
    uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    chosen: list[Any] = []
    for word in (word.strip() for word in wanted.split(",")):
        if word.isdigit() and int(word) < len(handles):
            chosen.append(handles[int(word)])
            continue
        named = [
            h for h, uuid in zip(handles, uuids, strict=True) if word and uuid.startswith(word)
        ]
        if len(named) != 1:
            break
        chosen.append(named[0])
    return chosen


def _describe(nvml: Nvml, handle: Any, known: Mapping[str, KnownDevice]) -> KnownDevice:
    """The table's facts with the memory that this very device has; else an estimate."""
    name = _text(nvml.nvmlDeviceGetName(handle))
    memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    for device in known.values():
        if name in device.driver_names:
            memory_bytes = min(memory_bytes, device.type.memory_bytes)
            return replace(device, type=replace(device.type, memory_bytes=memory_bytes))
    capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    clock_hz = 1e6 * nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
    fp32 = 2 * nvml.nvmlDeviceGetNumGpuCores(handle) * clock_hz
    half = fp32 * _TENSOR_CORE_FACTOR.get((capability[0], capability[1]), 4)
    memory_hz = 1e6 * nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    return KnownDevice(
        DeviceType(
            name=name,
            kind="cuda",
            memory_bytes=memory_bytes,
            memory_bandwidth_bytes_per_second=(
                2 * memory_hz * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8
            ),
            flops_per_second={"bf16": half, "fp16": half, "fp32": fp32},
            memory_efficiency=0.8,
            compute_efficiency=0.7,
            launch_seconds=3e-6,
            serial_seconds=4e-10,
            runtime_bytes=int(0.75 * GIB),
            power_watts=nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
            estimated=True,
        )
    )


def _link(nvml: Nvml, handle: Any, device: KnownDevice) -> Link:
    """The table's link when this device has one of that kind, else an estimate by count."""
    active = _active_nvlinks(nvml, handle)
    kind = "nvlink" if active else "pcie"
    if device.link is not None and device.link.kind == kind:
        return device.link
    if active:
        major = nvml.nvmlDeviceGetCudaComputeCapability(handle)[0]
        gb = active * _NVLINK_GB_PER_SECOND.get(major, 25.0)
        return typical_link("nvlink", 1e9 * gb)
    lanes = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
    generation = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
    gb = lanes * _PCIE_GB_PER_SECOND_PER_LANE.get(generation, 0.985)
    return typical_link("pcie", 1e9 * gb)


def _active_nvlinks(nvml: Nvml, handle: Any) -> int:
    active = 0
    for number in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            active += nvml.nvmlDeviceGetNvLinkState(handle, number) == 1
        except nvml.NVMLError:
            break
    return active


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
