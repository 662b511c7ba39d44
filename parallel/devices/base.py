"""What the runtime asks of a device. Code above never branches on its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class MemoryStatistics:
    """Bytes. On CUDA the allocator's; on CPU the process's resident memory."""

    allocated_bytes: int
    peak_allocated_bytes: int
    reserved_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True)
class MemoryInUse:
    """Bytes at this moment: the process's resident memory, and what the allocator has given out
    and keeps (None without one that counts)."""

    resident_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


class Timer(ABC):
    """Measures one stretch of work; `seconds` and `stretch_ns` wait for the device unless
    `immediate`."""

    immediate = True

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def seconds(self) -> float: ...

    @abstractmethod
    def stretch_ns(self) -> tuple[int, int]:
        """Its begin and end on the host's monotonic clock, ns."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the stretch has ended on the device; doesn't wait."""


class PackedLinear(ABC):
    """A product with a weight in a device's own layout. `bytes` is what the weight takes."""

    bytes: int

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in] → [T, out]"""

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """The same in float32; of sums that were never rounded, where the product can leave
        them."""
        return self(x).float()


class PackedTable(PackedLinear):
    """A packed weight whose rows are looked up as well: embedding and head in one."""

    @abstractmethod
    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [T] → [T, in]"""


class Graph(ABC):
    """Work that was captured once: kernels with their arguments, addresses included."""

    @abstractmethod
    def replay(self) -> None:
        """Queues the work again: it reads what lies at the captured addresses now."""


def _reached() -> None:
    """What was given to a device without a queue is done when the call returns."""


class Device(ABC):
    """One rank's device: allocation, copies, timing, memory statistics. `immediate`: what it is
    given is done when the call returns. `native`: its native kernels are loaded."""

    immediate = True
    native = False
    capability: tuple[int, int] | None = None
    """CUDA's compute capability; None on other devices, and where nothing is computed."""
    uncompiled: str = "it gains nothing here"
    """Why `compile` gives back what it is given; empty where it does compile."""
    kind: str
    name: str
    torch_device: torch.device

    @cached_property
    def _kept(self) -> dict[object, object]:
        return {}

    def kept(self, key: object, make: Callable[[], T]) -> T:
        """What all users of the device share: made by the first to ask, kept as long as it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]

    @abstractmethod
    def activate(self) -> None:
        """Makes this the current device of the process."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.torch_device)

    def weight(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory for what each step reads whole; it isn't filled."""
        return self.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype, device=self.torch_device)

    @abstractmethod
    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that `upload` copies from without waiting, where the device can."""

    def array(self, host: torch.Tensor) -> NDArray[Any]:
        """A host buffer as an array to write to."""
        return host.numpy()

    @abstractmethod
    def upload(self, host: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Copies `host` into `out` on the device, in stream order, and returns `out`."""

    def numbers(self, values: Sequence[int] | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A few numbers of the host on the device, which isn't waited for."""
        return torch.as_tensor(values, dtype=dtype)

    def compile(self, run: Callable[P, T]) -> Callable[P, T]:
        """`run` made into fewer kernels where the device gains by it, else `run` itself."""
        return run

    def capture(self, run: Callable[[], None]) -> Graph | None:
        """What `run` gives the device, without doing it now; None on devices without graphs. `run`
        must have been run before, and reads and writes tensors that stay where they are.

        Raises `CaptureError` when something in it can't be captured."""
        return None

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear | None:
        """A faster form of a product with `weight` that takes no more memory, if there is one. It
        may be made in the weight's own memory."""
        return None

    def pack_table(self, weight: torch.Tensor) -> PackedTable | None:
        """The same for a weight whose rows are looked up as well."""
        return None

    def wide_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[T, in] with a weight [out, in] that isn't packed → [T, out] in float32, rounded before
        only where the device's product can't do without."""
        return F.linear(x, weight).float()

    @abstractmethod
    def timer(self) -> Timer: ...

    def keep_time(self) -> None:
        """Between steps: ties the device's clock to the host's anew where they have drifted."""
        return

    def mark(self) -> Callable[[], None]:
        """A place in the device's work so far; the result waits until it has been reached."""
        return _reached

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for all work given to the device."""

    @abstractmethod
    def memory_statistics(self) -> MemoryStatistics: ...

    @abstractmethod
    def memory_in_use(self) -> MemoryInUse:
        """Cheap enough for every few steps; waits for nothing."""

    def release_cached(self) -> None:
        """Gives back what the allocator keeps for later tensors, where it does."""
        return

    @abstractmethod
    def reset_peak(self) -> None:
        """Starts the allocator's peak anew; the process's resident peak stays."""

    @abstractmethod
    def context_bytes(self) -> int:
        """What the process holds before any tensor: libraries, and the device's context."""
