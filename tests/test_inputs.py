"""A step's chunks as flattened tensors, and when their host memory may be written again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from parallel.devices.cpu import CpuDevice
from parallel.requests.types import Sampling
from parallel.runtime.inputs import InputBuffers, Sizes
from parallel.runtime.sequences import Chunk, Sequences, StepMessage

SIZES = Sizes(tokens=16, sequences=4, blocks=3, block_tokens=4)


def known_sequences() -> Sequences:
    sequences = Sequences()
    sampling = Sampling().to_wire()
    joined = [(7, list(range(100, 106)), [5, 2], sampling), (8, [1, 2, 3], [9], sampling)]
    sequences.apply(StepMessage(0, "prefill", [], [], joined, []))
    return sequences


def test_chunks_are_flattened() -> None:
    chunks = [Chunk(8, 2, 1, True), Chunk(7, 2, 4, False)]
    step = InputBuffers(SIZES, CpuDevice()).build(chunks, known_sequences())
    assert step.token_ids.tolist() == [3, 102, 103, 104, 105]
    assert step.positions.tolist() == [2, 2, 3, 4, 5]
    assert step.slots.tolist() == [9 * 4 + 2, 5 * 4 + 2, 5 * 4 + 3, 2 * 4, 2 * 4 + 1]
    assert step.block_tables.tolist() == [[9, 0], [5, 2]]
    assert step.context_tokens == (3, 6) and step.context_lengths.tolist() == [3, 6]
    assert step.query_starts == (0, 1, 5) and step.decodes == 1
    assert step.logit_rows.tolist() == [0]


def test_host_memory_is_written_after_its_copies_are_done() -> None:
    said: list[str] = []

    class Queued(CpuDevice):
        """Copies that are done only when somebody has waited for the mark behind them."""

        def mark(self) -> Callable[[], None]:
            said.append("mark")
            return lambda: said.append("wait")

    buffers = InputBuffers(SIZES, Queued())
    for _ in range(2):
        buffers.build([Chunk(8, 0, 3, True)], known_sequences())
    assert said == ["mark", "wait", "mark", "wait", "mark"]


class Uploads(CpuDevice):
    """Isn't the host, and says what it was asked to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.torch_device = torch.device("cuda")
        self.whole: list[bool] = []

    def upload(self, host: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        self.whole.append(host.is_contiguous() and out.is_contiguous())
        return super().upload(host, out)


def test_a_steps_inputs_are_copied_without_gaps() -> None:
    device, sequences = Uploads(), Sequences()
    sampling = Sampling().to_wire()
    joined = [(7, list(range(9)), [5, 2, 8], sampling), (8, [1, 2, 3], [9], sampling)]
    sequences.apply(StepMessage(0, "prefill", [], [], joined, []))
    buffers = InputBuffers(Sizes(tokens=16, sequences=4, blocks=6, block_tokens=4), device)
    step = buffers.build([Chunk(8, 2, 1, True), Chunk(7, 4, 5, True)], sequences)
    assert step.block_tables.tolist() == [[9, 0, 0], [5, 2, 8]]
    step = buffers.build([Chunk(8, 2, 1, True)], sequences)
    assert step.block_tables.tolist() == [[9]]
    assert all(device.whole) and len(device.whole) == 12


def test_a_table_is_shown_as_it_is_now() -> None:
    """Rows that stay aren't written again: those that change, move or go must be."""
    buffers, sequences = InputBuffers(SIZES, CpuDevice()), known_sequences()

    def shown(*chunks: Chunk) -> list[list[int]]:
        return buffers.build(chunks, sequences).block_tables.tolist()

    first, second = Chunk(7, 5, 1, True), Chunk(8, 2, 1, True)
    assert shown(first, second) == [[5, 2], [9, 0]]
    sequences.apply(StepMessage(1, "decode", [], [], [], [], tables=[(8, 1, [4]), (7, 1, [6])]))
    assert shown(first, second) == [[5, 6], [9, 4]]
    assert shown(second) == [[9]]
    assert shown(second, first) == [[9, 4], [5, 6]]
    sequences.apply(StepMessage(2, "decode", [], [], [], [], tables=[(7, 0, [1, 3])]))
    assert shown(second, first) == [[9, 4], [1, 3]]
    sequences.apply(StepMessage(3, "decode", [], [8], [(8, [1, 2, 3], [7], {})], []))
    assert shown(second, first) == [[7, 0], [1, 3]]
