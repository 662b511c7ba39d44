"""Norms, activations and rotary positions as a device compiles them, against the portable ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from parallel.architecture.spec import Norm, Rotary
from parallel.devices import cuda
from parallel.devices.base import P, T
from parallel.devices.cpu import CpuDevice
from parallel.devices.cuda import compiler_lacks
from parallel.kernels.elementwise_choice import PORTABLE, choose_elementwise
from parallel.kernels.elementwise_compiled import CompiledNormalization
from parallel.kernels.step import StepInput


class Compiling(CpuDevice):
    """Traces as a GPU's device does, and runs what was traced without a code generator."""

    uncompiled = ""

    def __init__(self) -> None:
        super().__init__(1)
        self.compiled: list[object] = []

    def compile(self, run: Callable[P, T]) -> Callable[P, T]:
        self.compiled.append(run)
        return torch.compile(run, backend="aot_eager", fullgraph=True)


def rows(count: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def step_at(positions: list[int]) -> StepInput:
    none = torch.zeros(0, dtype=torch.int64)
    at = torch.tensor(positions)
    return StepInput(none, at, none, none, none, none, (0, len(positions)), (), 0)


@torch.inference_mode()
def test_compiled_forms_compute_what_the_portable_ones_do() -> None:
    device = Compiling()
    forms = choose_elementwise(device, torch.float64)
    weight, bias = rows(8), rows(9)[:8]
    for count in (5, 1, 3, 7):
        x, delta = rows(count, 8), rows(count, 8).flip(0) * 3
        for norm, b in ((Norm("rms", 1e-5), None), (Norm("layer", 1e-5), bias)):
            ours, theirs = x.clone(), x.clone()
            found = forms.norm(norm, weight, b).add(ours, delta)
            torch.testing.assert_close(found, PORTABLE.norm(norm, weight, b).add(theirs, delta))
            assert found[1] is ours
            torch.testing.assert_close(ours, x + delta)
        for name, gated in (("silu", True), ("gelu_tanh", False)):
            made = forms.activation(name, gated)(x)
            torch.testing.assert_close(made, PORTABLE.activation(name, gated)(x))
        heads, step = rows(count, 3, 8), step_at(list(range(40, 40 + count)))
        for dim in (8, 4):
            rotary, cpu = Rotary(10000.0, dim), device.torch_device
            turned = forms.rotary(rotary, cpu)(heads, step)
            torch.testing.assert_close(turned, PORTABLE.rotary(rotary, cpu)(heads, step))
    # Each is compiled once for all layers.
    assert len(device.compiled) == len(set(device.compiled)) == 5


def test_a_device_without_a_compiler_gets_the_portable_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_elementwise(CpuDevice(1), torch.float32) is PORTABLE
    assert isinstance(
        choose_elementwise(Compiling(), torch.float32).norm(Norm("rms", 1e-5), rows(8), None),
        CompiledNormalization,
    )
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert compiler_lacks() == "the package triton is missing"
    monkeypatch.setattr(cuda, "find_spec", lambda name: name)
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "C compiler" in compiler_lacks()
    monkeypatch.setattr(cuda.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert compiler_lacks() == ""
