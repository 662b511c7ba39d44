"""The bodies of generation requests, as OpenAI's clients (and vLLM's) send them.

Values may be null, which means the default. Fields that no route knows are ignored, except those
that would change the answer and can't be honoured: `check_supported` refuses them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.types import FailFast

from parallel.errors import RequestError

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "continue_final_message": (False,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""Field → the values, beside null, that ask for nothing."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(BaseModel):
    """What both routes take. `stop`, `stop_token_ids` and prompts are checked where they are read:
    a list of millions must not make an error for each entry."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    priority: int | None = None
    best_of: int | None = None
    stop: Any = None
    stop_token_ids: Any = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check_supported(self) -> None:
        """Raises `RequestError` naming a field whose wish can't be met."""
        for name, value in (self.model_extra or {}).items():
            neutral = _NEUTRAL.get(name)
            if neutral is not None and value is not None and value not in neutral:
                raise RequestError(
                    f"'{name}' is not supported; leave it out", param=name, code="unsupported"
                )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError(
                "'best_of' is not supported; leave it out or give the value of 'n'",
                param="best_of",
                code="unsupported",
            )
        if self.min_tokens and not self.ignore_eos:
            raise RequestError(
                "'min_tokens' is not supported but with ignore_eos; leave it out",
                param="min_tokens",
                code="unsupported",
            )


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: str | list[Any] | None = None


class ChatBody(GenerationBody):
    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(GenerationBody):
    prompt: Any
    logprobs: int | None = None
