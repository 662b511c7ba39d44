"""Devices: which one a rank gets, and what each of them answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel.devices import cuda, select
from parallel.devices.cpu import CpuDevice
from parallel.devices.cuda import CudaDevice
from parallel.devices.fake import FakeCudaDevice
from parallel.devices.process import reset_peak_rss, status_bytes
from parallel.devices.select import select_device
from parallel.errors import CaptureError, HardwareError
from parallel.runtime.fragmentation import kept_share


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(select.torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(select.torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(select.torch.cuda, "get_device_name", lambda index: f"gpu {index}")
    monkeypatch.setattr(select.torch.cuda, "get_device_capability", lambda index: (9, 0))


def test_auto_takes_the_local_ranks_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 2)
    device = select_device("auto", 1)
    assert (device.kind, device.name, device.torch_device) == (
        "cuda",
        "gpu 1",
        torch.device("cuda:1"),
    )
    assert select_device("cpu", 1).kind == "cpu"
    _gpus(monkeypatch, 0)
    assert select_device("auto", 1).kind == "cpu"


def test_a_rank_without_a_gpu_is_told_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 2)
    with pytest.raises(HardwareError, match="local rank 2 has no GPU: this host has 2"):
        select_device("auto", 2)
    _gpus(monkeypatch, 0)
    with pytest.raises(HardwareError, match="torch sees no GPU"):
        select_device("cuda", 0)


@pytest.mark.parametrize("shape", [(3, 5), (1024, 1024)], ids=["small", "large"])
def test_cpu_tensors(shape: tuple[int, int]) -> None:
    device = CpuDevice()
    zeros = device.zeros(shape, torch.bfloat16)
    assert (tuple(zeros.shape), zeros.dtype) == (shape, torch.bfloat16)
    assert not zeros.any() and zeros.is_contiguous()
    host = device.host_buffer(shape, torch.bfloat16).fill_(3)
    assert device.upload(host, zeros) is zeros and torch.equal(zeros, host)
    assert device.empty(shape, torch.int32).shape == shape


def test_cpu_zeros_cost_what_is_touched() -> None:
    device, size = CpuDevice(), 64 << 20
    before = device.memory_statistics().allocated_bytes
    zeros = device.zeros((size,), torch.uint8)
    untouched = device.memory_statistics().allocated_bytes - before
    zeros.fill_(1)
    touched = device.memory_statistics().allocated_bytes - before
    assert untouched < size // 8 and touched > size // 2


def test_cpu_peak_is_at_least_what_is_held() -> None:
    statistics = CpuDevice().memory_statistics()
    assert statistics.peak_rss_bytes >= statistics.allocated_bytes * 0.9 > 0


def test_a_host_timer_measures_between_start_and_stop() -> None:
    timer = CpuDevice().timer()
    timer.start()
    timer.stop()
    assert timer.seconds() >= 0 and timer.immediate and timer.done()


class Stream:
    """A device's work as events see it: what is recorded is reached `delay_ms` later."""

    at_ms = 0.0
    delay_ms = 0.0
    waits = 0


class FakeEvent:
    def __init__(self, enable_timing: bool = False):
        self.reached_ms = 0.0

    def record(self) -> None:
        self.reached_ms = Stream.at_ms + Stream.delay_ms

    def synchronize(self) -> None:
        Stream.waits += 1
        Stream.at_ms = max(Stream.at_ms, self.reached_ms)

    def query(self) -> bool:
        return Stream.at_ms >= self.reached_ms

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.reached_ms - self.reached_ms


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    """The host's clock reads 1 s more than the stream's."""
    _gpus(monkeypatch, 1)
    for name in ("at_ms", "delay_ms", "waits"):
        monkeypatch.setattr(Stream, name, 0)
    monkeypatch.setattr(cuda.torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(cuda.time, "monotonic_ns", lambda: round(Stream.at_ms * 1e6) + 10**9)
    return CudaDevice(0)


def test_events_tell_the_hosts_time_without_waiting_for_each(fake_gpu: CudaDevice) -> None:
    fake_gpu.keep_time()
    assert Stream.waits == 1
    Stream.at_ms, Stream.delay_ms = 5.0, 2.0
    timer = fake_gpu.timer()
    timer.start()
    Stream.at_ms = 6.5
    timer.stop()
    assert not timer.done() and not timer.immediate and Stream.waits == 1
    assert timer.stretch_ns() == (10**9 + 7_000_000, 10**9 + 8_500_000)
    assert timer.seconds() == 0.0015 and timer.done()


def test_the_devices_clock_is_tied_to_the_hosts_now_and_then(fake_gpu: CudaDevice) -> None:
    for at_ms, waits in ((0, 1), (9_000, 1), (10_001, 2), (10_002, 2), (30_000, 3)):
        Stream.at_ms = at_ms
        fake_gpu.keep_time()
        assert Stream.waits == waits


def test_cuda_memory_is_the_allocators(
    fake_gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"allocated_bytes.all.current": 7, "reserved_bytes.all.current": 9}
    monkeypatch.setattr(cuda.torch.cuda, "memory_stats", lambda device: found)
    memory = fake_gpu.memory_in_use()
    assert (memory.allocated_bytes, memory.reserved_bytes) == (7, 9)
    assert memory.resident_bytes > 0


def test_graphs_share_a_pool_and_a_stream(
    fake_gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads may ask events while one is captured; what can't be captured says why."""
    given: list[tuple[object, ...]] = []
    graphs = cuda.torch.cuda

    class Capture:
        def __init__(
            self, graph: object, pool: object, stream: object, *, capture_error_mode: str
        ) -> None:
            given.append((pool, stream, capture_error_mode))

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    class Recorded:
        replays = 0

        def replay(self) -> None:
            Recorded.replays += 1

    monkeypatch.setattr(graphs, "graph", Capture)
    monkeypatch.setattr(graphs, "CUDAGraph", Recorded)
    monkeypatch.setattr(graphs, "graph_pool_handle", object)
    monkeypatch.setattr(graphs, "Stream", lambda device: ("stream of", device))
    ran: list[int] = []
    first, _ = (fake_gpu.capture(lambda n=n: ran.append(n)) for n in range(2))
    assert first is not None and ran == [0, 1] and Recorded.replays == 0
    first.replay()
    assert Recorded.replays == 1 and given[0] == given[1]
    assert given[0][1:] == (("stream of", torch.device("cuda:0")), "thread_local")

    def fails() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(CaptureError, match="gpu 0 can't capture this: operation not permitted"):
        fake_gpu.capture(fails)


def test_fake_cuda_allocates_nothing_and_keeps_shapes() -> None:
    device = FakeCudaDevice()
    with FakeTensorMode():
        out = device.zeros((1 << 40, 4), torch.bfloat16)
        host = device.host_buffer((1 << 40, 4), torch.bfloat16)
        assert device.upload(host, out) is out
        assert out.device.type == "cuda" and host.device.type == "cpu"
        weight = device.empty((8, 4), torch.bfloat16)
        assert torch.nn.functional.linear(out, weight).shape == (1 << 40, 8)
    assert device.memory_statistics().allocated_bytes == 0


def test_status_lines_are_read_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   1234 kB\nVmRSS:\t 99 kB\n")
    assert status_bytes("VmHWM", tmp_path) == 1234 * 1024
    assert status_bytes("VmSwap", tmp_path) == 0
    assert status_bytes("VmHWM", tmp_path / "nowhere") == 0
    assert not reset_peak_rss(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("after", "share"), [(1500, 0.0), (1400, 0.0), (1750, 0.5), (1501, 0.002), (2500, 2.0)]
)
def test_what_an_allocator_keeps_is_rounded_up(after: int, share: float) -> None:
    """1000 bytes were reserved before, and the activations took 500."""
    assert kept_share(1000, after, 500) == share
