"""The peak of live tensors while code runs, on devices whose allocator keeps no statistics (CPU).

A dispatch mode sees every operation; a storage counts from the operation that makes it until its
last reference goes. Operations that are made of others are taken apart, collectives too, so that
what they hold inside is seen. Scratch that one kernel takes for itself isn't.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parallel.collectives.ops import BODIES


class LiveTensors(TorchDispatchMode):
    """`peak_bytes` of storages made since entering; those that were there before don't count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: keeping the compiler away would load it first."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            if func in BODIES:
                return BODIES[func](*args, **kwargs)
            if func.namespace == "aten":
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        known = {_place(leaf) for leaf in tree_leaves((args, kwargs)) if _has_storage(leaf)}
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if _has_storage(leaf):
                self._count(leaf.untyped_storage(), known)
        return out

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in known or place in self._alive or not size:
            return

        def gone(_: object) -> None:
            self.live_bytes -= size
            self._alive.pop(place, None)

        self._alive[place] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _has_storage(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn


def _place(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
