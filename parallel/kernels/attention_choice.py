"""Which form of attention a device gets, by name or by what is fastest there.

A row of the table says where it can be had; `auto` takes the first row that can be.
"""

from __future__ import annotations

from parallel.errors import ConfigError, did_you_mean
from parallel.kernels import attention_cuda_flash as flash
from parallel.kernels import attention_cuda_flashinfer as flashinfer
from parallel.kernels import attention_cuda_flex as flex
from parallel.kernels import attention_cuda_varlen as varlen
from parallel.kernels import attention_native as native
from parallel.kernels.attention import AttentionBackend, PagedAttention
from parallel.kernels.attention_form import Form, Wanted


def _anywhere(_: Wanted) -> None:
    return None


def _portable(wanted: Wanted) -> AttentionBackend:
    return PagedAttention(wanted.facts, wanted.heads, wanted.device.torch_device)


FORMS: tuple[Form, ...] = (
    Form("flash_attn", flash.refuses, flash.FlashAttention),
    Form("flashinfer", flashinfer.refuses, flashinfer.FlashInferAttention),
    Form("varlen", varlen.refuses, varlen.VarlenAttention),
    Form("flex", flex.refuses, flex.FlexAttention),
    Form("native", native.refuses, native.NativeAttention),
    Form("sdpa", _anywhere, _portable),
)
"""The fastest first; the last one can be had everywhere."""


def choose_attention(wanted: Wanted, name: str = "auto") -> tuple[Form, str]:
    """The form, and why it is that one: `name` is a form's or 'auto'.

    Raises `ConfigError` when that form can't be had here."""
    reasons = {form.name: form.refuses(wanted) for form in FORMS}
    legal = [form for form in FORMS if reasons[form.name] is None]
    if name == "auto":
        return legal[0], _passed_over(legal[0], reasons)
    for form in legal:
        if form.name == name:
            return form, f"engine.attention={name}"
    known = [form.name for form in FORMS]
    why = reasons[name] if name in reasons else f"unknown{did_you_mean(name, known)}"
    raise ConfigError(
        f"engine.attention={name} can't be had on {wanted.device.name}: {why}; "
        f"legal here: {', '.join(['auto', *(form.name for form in legal)])}"
    )


def _passed_over(chosen: Form, reasons: dict[str, str | None]) -> str:
    """On CUDA why the faster forms aren't taken; elsewhere they say nothing of use."""
    named = []
    for form in FORMS:
        if form is chosen:
            break
        named.append(f"{form.name}: {reasons[form.name]}")
    return "; ".join(named) if named else "the fastest of all forms"
