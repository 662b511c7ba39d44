"""What a page says of a sweep, and its charts."""

from __future__ import annotations

from parallel.report.comparison import Comparison, Entry
from parallel.report.view import Headline, PageTable, View, ms, size


def comparison_view(found: Comparison) -> View:
    entries = found.entries
    best = entries[0] if entries else None
    return View(
        title=f"{found.model}: {len(entries)} layouts measured" if entries else "Nothing measured",
        eyebrow=f"Sweep on {found.cluster}" if entries else "Sweep",
        verdict=f"Most tokens per second: {best.name}" if best else "No point was measured",
        reasons=[
            f"{e.name} is on the front: {e.user_rate:.1f} tokens/s for each user, "
            f"{e.device_rate:.1f} for each device"
            for e in entries
            if e.pareto
        ],
        headlines=[] if best is None else _headlines(best),
        tables=[_measured(entries), *_left(found)],
        facts=[(key.replace("_", " "), str(value)) for key, value in found.workload.items()],
    )


def _headlines(best: Entry) -> list[Headline]:
    return [
        Headline(f"{best.tokens_per_second:.1f}", "tokens per second", best.name),
        Headline(ms(best.tpot_ms), "per output token", f"first one after {ms(best.ttft_ms)}"),
        Headline(size(best.saved_bytes), "saved on each rank", f"of {best.ranks}"),
    ]


def _measured(entries: tuple[Entry, ...]) -> PageTable:
    headers = (
        "point",
        "layout",
        "ranks",
        "tokens/s",
        "predicted",
        "per user",
        "per device",
        "first token",
        "next token",
        "fullest rank",
        "saved",
        "added per token",
    )
    rows = [
        (
            e.name,
            e.layout,
            str(e.ranks),
            f"{e.tokens_per_second:.1f}",
            f"{e.predicted_tokens_per_second:.1f}",
            f"{e.user_rate:.1f}",
            f"{e.device_rate:.1f}",
            ms(e.ttft_ms),
            ms(e.tpot_ms),
            size(e.rank_bytes),
            size(e.saved_bytes),
            ms(e.added_ms),
        )
        for e in entries
    ]
    note = "Best throughput first. Saved: against the smallest layout that fits, on each rank."
    return PageTable("Measured", note, headers, rows, chosen=0 if rows else None)


def _left(found: Comparison) -> list[PageTable]:
    if not found.left:
        return []
    rows = [(left.name, left.state, left.reason) for left in found.left]
    return [PageTable("Not measured", "", ("point", "", "reason"), rows, words=True)]
