"""Whatever else is going on, a request gets the tokens that it gets alone.

Requests that come and go, share beginnings, have siblings, stop early, are preempted (computed
again or swapped), cancelled and refused, in a cache of some dozen blocks: each one's greedy tokens
are transformers' for it alone, and nothing is left behind on any rank.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import CONFIGS, make_checkpoint, reference_model
from tests.interleaving_case import LIMITS, Script
from tests.rank_pool import RankPool

STOPS = tuple(range(0, 503, 10))


def make_script(
    seed: int, vocabulary: int, requests: int, replicas: int = 1
) -> tuple[Script, list[int]]:
    """About so many requests in bursts, and those to be cancelled once they are preempted."""
    draw = random.Random(seed)
    beginnings = [_tokens(draw, vocabulary, n) for n in (6, 16, 33)]
    script: Script = []
    after, number = 0, 0
    preempted: list[int] = []
    while number < requests:
        prompt = _tokens(draw, vocabulary, draw.choice([1, 3, 5, 9, 20, 45]))
        if draw.random() < 0.5:
            prompt = draw.choice(beginnings) + prompt
        siblings = draw.choice([1, 1, 1, 2, 4])
        sampling = {"max_tokens": draw.randint(1, 40), "ignore_eos": True}
        if draw.random() < 0.5:
            sampling["stop_token_ids"] = STOPS
        priority = draw.choice([0, 0, 0, 1, -1])
        group = number if siblings > 1 else None
        for _ in range(siblings):
            body = {"id": number, "prompt": prompt, "sampling": dict(sampling)}
            script.append(
                {"after": after, "submit": {**body, "priority": priority, "group": group}}
            )
            fate = draw.random()
            if fate < 0.1:
                script.append({"after": after + draw.choice([0, 2, 15]), "cancel": number})
                after = script[-1]["after"]
            elif fate < 0.25:
                preempted.append(number)
            number += 1
        after += draw.choice([0, 0, 8, 20, 60])
    # More at once than may wait.
    for _ in range(replicas * (LIMITS.requests + 2 * LIMITS.most_waiting)):
        body = {"id": number, "prompt": [1, 2, 3], "sampling": {"max_tokens": 2}}
        script.append({"after": after, "submit": {**body, "priority": 5, "group": None}})
        number += 1
    return script, preempted


def _tokens(draw: random.Random, vocabulary: int, count: int) -> list[int]:
    return [draw.randrange(vocabulary) for _ in range(count)]


@torch.inference_mode()
def is_greedy(path: Path, prompt: list[int], tokens: list[int]) -> bool:
    """Each token is what transformers makes of those before it, the request run alone."""
    logits = reference_model(path)(torch.tensor([prompt + tokens])).logits[0]
    chosen = logits[len(prompt) - 1 : -1].argmax(dim=-1)
    return chosen.tolist() == tokens


def check_answer(path: Path, wanted: dict[str, Any], answer: dict[str, Any]) -> None:
    tokens, sampling = answer["tokens"], wanted["sampling"]
    if tokens:
        assert is_greedy(path, wanted["prompt"], tokens)
        assert answer["cached"][0] is not None and set(answer["cached"][1:]) <= {None}
        assert 0 <= answer["cached"][0] < len(wanted["prompt"])
    stops = [t for t in tokens if t in sampling.get("stop_token_ids", ())]
    if answer["reason"] == "length":
        assert len(tokens) == sampling["max_tokens"] and not stops
    elif answer["reason"] == "stop":
        assert stops == tokens[-1:] and len(tokens) <= sampling["max_tokens"]
    elif answer["reason"] == "error":
        assert answer["code"] == "queue_full" and not tokens
    else:
        assert answer["reason"] == "cancelled"
        assert len(tokens) < sampling["max_tokens"] and not stops


@pytest.mark.parametrize(
    ("seed", "name", "degrees", "options"),
    [
        (6, "qwen3", (1, 1), {}),
        (2, "mistral-window", (2, 1), {}),
        (4, "llama-5-heads-1-kv", (2, 1), {"collectives": "shared_memory"}),
        (6, "llama3-rope", (1, 2), {"batches": 3}),
        (4, "qwen3", (2, 2), {}),
    ],
    ids=["tp1", "tp2-gloo", "tp2-shared-memory", "pp2-of-3-batches", "tp2-pp2"],
)
def test_requests_get_what_they_get_alone(
    seed: int,
    name: str,
    degrees: tuple[int, int],
    options: dict[str, Any],
    pool: RankPool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = make_checkpoint(name, tmp_path_factory.getbasetemp())
    tp, pp = degrees
    script, preempted = make_script(seed, CONFIGS[name][1]["vocab_size"], 60)
    leader, *others = pool.run(
        "tests.interleaving_case:interleave",
        tp * pp,
        model=str(path),
        degrees=[tp, pp],
        script=script,
        on_preempted=preempted,
        **options,
    )
    wanted = {e["submit"]["id"]: e["submit"] for e in script if "submit" in e}
    answers = leader["answers"]
    assert set(answers) == set(wanted)
    for number, answer in answers.items():
        check_answer(path, wanted[number], answer)

    assert leader["whole"]
    planned_bytes, held_bytes = leader["swap_bytes"]
    assert planned_bytes == held_bytes > 0
    assert [rank["mirror"] for rank in (leader, *others)] == [0] * (tp * pp)
    # All of it really happened.
    seen, counts = leader["seen"], leader["counts"]
    for what in ("mixed steps", "copied", "swapped out", "swapped in", "tables cut"):
        assert seen[what] > 0, what
    for what in ("recomputed", "swapped", "cached_tokens", "evictions", "copies", "refused"):
        assert counts[what] > 0, what
    assert seen["most in flight"] == options.get("batches", pp)
    assert leader["cancelled_while_preempted"] > 0
    reasons = [answer["reason"] for answer in answers.values()]
    assert {"length", "stop", "cancelled", "error"} == set(reasons)
    assert reasons.count("error") == counts["refused"]


def test_requests_get_what_they_get_alone_from_two_replicas(
    pool: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The front's router spreads them; when each comes is up to the threads, what it gets isn't."""
    path = make_checkpoint("qwen3", tmp_path_factory.getbasetemp())
    script, _ = make_script(8, CONFIGS["qwen3"][1]["vocab_size"], 90, replicas=2)
    replicas = pool.run("tests.interleaving_replicas:interleave", 2, model=str(path), script=script)
    wanted = {e["submit"]["id"]: e["submit"] for e in script if "submit" in e}
    answers = replicas[0]["answers"]
    assert set(answers) == set(wanted)
    for number, answer in answers.items():
        check_answer(path, wanted[number], answer)
    reasons = {answer["reason"] for answer in answers.values()}
    assert reasons == {"length", "stop", "cancelled", "error"}
    for replica in replicas:
        assert replica["whole"] and replica["mirror"] == 0
        # Prompts of either were found in its cache; its cache was too small.
        counts = replica["counts"]
        assert counts["cached_tokens"] > 0 and counts["recomputed"] + counts["swapped"] > 0
        assert replica["seen"]["mixed steps"] > 0
    siblings = [e["submit"]["group"] for e in script if "submit" in e]
    assert any(siblings) and sum(r["seen"]["copied"] for r in replicas) > 0
