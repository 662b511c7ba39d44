"""Plans of toys, and what a measurement of them could have brought back."""

from __future__ import annotations

from typing import Any

from parallel.planner.limits import EngineLimits
from parallel.planner.search import Wanted
from parallel.report.report import build_report
from parallel.report.sides import measured_side
from parallel.report.trade_off import TradeOff, trade_off
from parallel.report.verdict import Candidate
from tests.specs import toy_planner

Json = dict[str, Any]
_CAUSES = ("weights", "kv_cache", "activations", "communication", "runtime")


def made_plan(tp: int = 1, pp: int = 1, dp: int = 1, context_tokens: int | None = None) -> Json:
    limits = EngineLimits(step_tokens=128, requests=8, context_tokens=context_tokens)
    outcome = toy_planner(devices=tp * pp * dp, limits=limits).search(Wanted(tp, pp, dp))
    plan: Json = outcome.to_json()["plans"][0]
    return plan


def layouts(devices: int = 4) -> Json:
    """All layouts of the toy on so many devices, and those refused."""
    return toy_planner(devices=devices).search(Wanted()).to_json()


def made_report(plan: Json, memory_off: float = 1.04) -> Json:
    """A run whose estimates were off by a little, and weights and cache exact."""
    ranks = []
    for rank in plan["ranks"]:
        held = {cause: rank["memory_bytes"][cause] for cause in _CAUSES}
        for cause in _CAUSES[2:]:
            held[cause] = int(held[cause] * memory_off)
        held["peak_tensors"] = held["weights"] + held["kv_cache"] + held["activations"]
        ranks.append({"rank": rank["rank"], "measured_bytes": held, "bytes_read": held["weights"]})
    collectives = [
        {
            "rank": rank["rank"],
            "axis": "tp",
            "op": op,
            "phase": phase,
            "layer": layer,
            "backend": "gloo",
            "calls": 20,
            "bytes": 4096,
            "seconds": 0.04,
            "wait_seconds": 0.01,
        }
        for rank in plan["ranks"]
        for phase in ("prefill", "decode")
        for op, layer in (
            ("all_reduce", "ffn"),
            ("all_reduce", "attention"),
            ("all_gather", "logits"),
        )
    ]
    step = {"predicted_seconds": 0.21, "measured_seconds": 0.2, "steps": 20}
    steps = {phase: {**step, "tokens": 80, "rows": 80} for phase in ("prefill", "decode")}
    shared = plan["world_size"] > plan["dp"]
    return build_report(plan, ranks, collectives if shared else [], steps)


def made_found(plan: Json, step_seconds: float = 0.01) -> Json:
    """Every rank's counts: 20 steps of each phase; odd ranks are a tenth slower on their own."""
    entries = []
    for rank in plan["ranks"]:
        at = rank["coordinates"]
        own = step_seconds * 0.7 * (1.1 if rank["rank"] % 2 else 1.0)
        alone = {"steps": 20, "tokens": 80, "seconds": 20 * own}
        run = {**alone, "seconds": 20 * step_seconds * 0.95}
        leads = at["tp"] == 0 and at["pp"] == 0
        entries.append(
            {
                "rank": rank["rank"],
                "coordinates": at,
                "muted": {"prefill": alone, "decode": alone},
                "run": {"prefill": run, "decode": run},
                "leader": _leader(step_seconds) if leads else None,
            }
        )
    return {
        "workload": {"input_tokens": 100, "output_tokens": 28, "concurrency": 4, "repeats": 3},
        "report": made_report(plan),
        "ranks": entries,
    }


def _leader(step_seconds: float) -> Json:
    foretold = {
        "seconds": 20 * step_seconds * 1.07,
        "communication_seconds": 20 * step_seconds * 0.2,
        "imbalance_seconds": 20 * step_seconds * 0.02,
    }
    phase = {
        "steps": 20,
        "tokens": 80,
        "rows": 80,
        "seconds": 20 * step_seconds,
        "predicted": foretold,
    }
    return {
        "wall_seconds": 40 * step_seconds,
        "run_seconds": 38 * step_seconds,
        "reply_seconds": 0.0,
        "phases": {"prefill": phase, "decode": phase},
        "predicted": {
            "ttft_seconds": 2 * step_seconds,
            "tpot_seconds": step_seconds,
            "tokens_per_second": 0.4 / step_seconds,
        },
        "requests": {
            "ttft_seconds": 3 * step_seconds,
            "tpot_seconds": 1.1 * step_seconds,
            "tokens_per_second": 0.36 / step_seconds,
            "requests": 12,
            "tokens": 336,
        },
    }


def made_trade_off(
    tp: int = 2, pp: int = 1, dp: int = 1, candidates: int = 4, baseline: bool = True
) -> TradeOff:
    layout, one = made_plan(tp, pp, dp), made_plan()
    return trade_off(
        measured_side(made_found(layout)),
        measured_side(made_found(one, 0.017)) if baseline else None,
        "one rank" if baseline else "none was asked for",
        [Candidate.of(plan) for plan in layouts(candidates)["plans"]],
        "throughput",
        {"input_tokens": 100, "output_tokens": 28, "concurrency": 4, "repeats": 3},
        {"device": "toy", "axes": ["tp: 2 ranks over gloo"], "versions": {"torch": "2.11.0"}},
    )
