"""Which all-reduce runs over symmetric memory, with stand-ins: there are no GPUs here."""

from __future__ import annotations

import pytest
import torch

from parallel.collectives.symmetric_memory import (
    ONE_SHOT_BYTES,
    SymmetricMemoryTransport,
    obstacle,
)
from tests.test_collective_ops import Alone

BUFFER_BYTES = 4 * ONE_SHOT_BYTES
GROUP = "group-of-two"


class Operators:
    """Those of torch.ops.symm_mem, as two ranks with equal arrays see them."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def one_shot_all_reduce_out(
        self, shared: torch.Tensor, how: str, group: str, out: torch.Tensor
    ) -> None:
        self._note("one_shot", how, group)
        out.copy_(2 * shared)

    def two_shot_all_reduce_(self, shared: torch.Tensor, how: str, group: str) -> None:
        self._note("two_shot", how, group)
        shared.mul_(2)

    def multimem_all_reduce_(self, shared: torch.Tensor, how: str, group: str) -> None:
        self._note("multimem", how, group)
        shared.mul_(2)

    def _note(self, name: str, how: str, group: str) -> None:
        assert (how, group) == ("sum", GROUP)
        self.called.append(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("size_bytes", "multicast", "called"),
    [
        (16, False, ["one_shot"]),
        (ONE_SHOT_BYTES, True, ["one_shot"]),
        (ONE_SHOT_BYTES + 16, False, ["two_shot"]),
        (ONE_SHOT_BYTES + 16, True, ["multimem"]),
        (BUFFER_BYTES, False, ["two_shot"]),
        (BUFFER_BYTES + 16, True, []),
        (8, True, []),
    ],
)
def test_the_form_follows_from_the_size(
    dtype: torch.dtype, size_bytes: int, multicast: bool, called: list[str]
) -> None:
    """What symmetric memory can't take is summed by NCCL; the sum is the same."""
    operators = Operators()
    buffer = torch.zeros(BUFFER_BYTES, dtype=torch.uint8)
    transport = SymmetricMemoryTransport(Alone(), "a test", buffer, GROUP, multicast, operators)
    x = (torch.arange(size_bytes // dtype.itemsize) % 17).to(dtype).view(-1, 2)
    expected = 2 * x
    transport.all_reduce(x)
    assert torch.equal(x, expected)
    assert operators.called == called


@pytest.mark.parametrize("x", [torch.ones(4, 4).t()[1:], torch.ones(8, dtype=torch.int64)])
def test_views_and_integers_are_left_to_nccl(x: torch.Tensor) -> None:
    operators = Operators()
    buffer = torch.zeros(BUFFER_BYTES, dtype=torch.uint8)
    transport = SymmetricMemoryTransport(Alone(), "a test", buffer, GROUP, True, operators)
    transport.all_reduce(x)
    assert bool((x == 2).all()) and operators.called == []


def test_the_operators_are_torchs() -> None:
    """Names and arguments as this torch has them."""
    for name, arguments in (
        ("one_shot_all_reduce_out", ["input", "reduce_op", "group_name", "out"]),
        ("two_shot_all_reduce_", ["input", "reduce_op", "group_name"]),
        ("multimem_all_reduce_", ["input", "reduce_op", "group_name"]),
    ):
        schema = getattr(torch.ops.symm_mem, name).default._schema
        assert [argument.name for argument in schema.arguments] == arguments


def test_every_gpu_must_read_every_other() -> None:
    assert obstacle([["a", 0, [1]], ["a", 1, [0]]]) == ""
    assert obstacle([["a", 0, [1]], ["b", 1, [0]]]) == "its ranks are on 2 hosts"
    unlinked = [["a", 0, [1]], ["a", 1, [0]], ["a", 2, [0, 1]]]
    assert obstacle(unlinked) == "GPU 0 can't read the memory of GPU 2"
