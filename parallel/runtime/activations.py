"""The peak of live tensors while code runs, on devices whose allocator keeps no statistics (CPU).

A dispatch mode sees every operation; a storage counts from the operation that makes it until its
last reference goes. Memory that a kernel takes and gives back inside itself isn't seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """`peak_bytes` of storages made since entering; those that were there before don't count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage(), known)
        return out

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        place = storage.data_ptr()
        if place in known or place in self._alive or not storage.nbytes():
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self.live_bytes -= size
            self._alive.pop(place, None)

        self._alive[place] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
