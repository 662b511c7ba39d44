"""From logits to tokens. V vocabulary; each row has its own parameters.

Order: penalties, temperature, top-k, top-p, then Gumbel noise and argmax, so that a draw is one
deterministic function of the logits, the seed and the position. Log-probabilities are those of the
model's own logits, before any of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from parallel.kernels.noise import gumbel
from parallel.requests.types import Sampling

_PIECE = 256


@dataclass(frozen=True)
class Row:
    """What one row is sampled with: `tokens` are prompt and generated, `prompt` of them given."""

    sampling: Sampling
    tokens: Sequence[int]
    prompt: int


class Choice(NamedTuple):
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[Choice]:
    """logits [R, V] float32 → one choice for each row."""
    plain = [_plain(r.sampling) for r in rows]
    if all(plain):
        return [Choice(t) for t in greedy(logits).tolist()]
    return [_sample_row(logits[i], row) for i, row in enumerate(rows)]


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """[R, V] → the place [R] of each row's maximum, the first of equal ones. PyTorch's argmax takes
    one number at a time on CPU: there the pieces' maxima, which it takes 16 at a time, come first.
    """
    rows, width = logits.shape
    count = width // _PIECE
    if logits.device.type != "cpu" or count < 2:
        return logits.argmax(dim=-1)
    pieces = logits.narrow(1, 0, count * _PIECE).view(rows, count, _PIECE)
    best = pieces.amax(dim=-1).argmax(dim=-1)
    inside = pieces[torch.arange(rows), best]
    found = best * _PIECE + inside.argmax(dim=-1)
    if width == count * _PIECE:
        return found
    rest, place = logits.narrow(1, count * _PIECE, width - count * _PIECE).max(dim=-1)
    return torch.where(rest > inside.amax(dim=-1), place + count * _PIECE, found)


def _plain(s: Sampling) -> bool:
    return s.temperature == 0 and s.logprobs is None and not _penalised(s)


def _penalised(s: Sampling) -> bool:
    return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0


def _sample_row(logits: torch.Tensor, row: Row) -> Choice:
    s = row.sampling
    adjusted = penalise(logits, row) if _penalised(s) else logits
    if s.temperature == 0:
        token = int(greedy(adjusted.unsqueeze(0)))
    else:
        token = _draw(adjusted / s.temperature, s, position=len(row.tokens))
    if s.logprobs is None:
        return Choice(token)
    logprobs = torch.log_softmax(logits, dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if s.logprobs:
        best = logprobs.topk(min(s.logprobs, logits.shape[0]))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Choice(token, float(logprobs[token]), top)


def penalise(logits: torch.Tensor, row: Row) -> torch.Tensor:
    """Repetition (arXiv 1909.05858) over all tokens; presence and frequency (OpenAI's API
    reference) over the generated ones. Returns a new [V]."""
    s = row.sampling
    out = logits.clone()
    if s.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.tokens)), dtype=torch.int64, device=out.device)
        old = out[seen]
        out[seen] = torch.where(old > 0, old / s.repetition_penalty, old * s.repetition_penalty)
    generated = torch.tensor(row.tokens[row.prompt :], dtype=torch.int64, device=out.device)
    if len(generated) and (s.presence_penalty or s.frequency_penalty):
        ids, counts = generated.unique(return_counts=True)
        out[ids] -= s.presence_penalty + s.frequency_penalty * counts
    return out


def _draw(logits: torch.Tensor, s: Sampling, position: int) -> int:
    """One token of the softmax of [V] `logits`, restricted by top-k and top-p."""
    if s.top_k == 0 and s.top_p == 1:
        ids = torch.arange(logits.shape[0], device=logits.device)
        kept = logits
    else:
        count = min(s.top_k or logits.shape[0], logits.shape[0])
        kept, ids = logits.sort(descending=True, stable=True)
        kept, ids = kept[:count], ids[:count]
        if s.top_p < 1:
            before = torch.softmax(kept, dim=-1).cumsum(dim=-1).roll(1)
            before[0] = 0
            keep = int((before < s.top_p).sum())
            kept, ids = kept[:keep], ids[:keep]
    noisy = kept.to(torch.float64) + gumbel(s.seed, position, ids)
    return int(ids[noisy.argmax()])
