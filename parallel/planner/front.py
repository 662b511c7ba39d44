"""The process between clients and scheduler: one thing at a time, in the order things come.

An engine's front reads, tokenises and hands on requests, and sends every token of every answer.
Where it falls behind, clients wait at both ends, and the engine runs with fewer requests than there
are clients.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrontCosts:
    """Seconds. `arrival` and `arrival_token` (of the prompt) pass before the scheduler sees a
    request, whatever else the front does; `request` and `answer_token` are the front's own work,
    for each request and each token of an answer."""

    arrival_seconds: float = 0.0
    arrival_token_seconds: float = 0.0
    request_seconds: float = 0.0
    answer_token_seconds: float = 0.0


class Front:
    """A line of one: what comes while it works waits."""

    def __init__(self, costs: FrontCosts):
        self._costs = costs
        self._free = 0.0

    def request(self, sent: float, tokens: int) -> float:
        """When the scheduler sees a prompt of so many tokens."""
        self._free = max(self._free, sent) + self._costs.request_seconds
        return self._free + self._costs.arrival_seconds + tokens * self._costs.arrival_token_seconds

    def answers(self, begun: float, ended: float, tokens: int, steps: int) -> float:
        """When clients have the last tokens of equal `steps`, each of which made `tokens`."""
        one = tokens * self._costs.answer_token_seconds
        first = begun + (ended - begun) / steps
        self._free = max(max(self._free, first) + steps * one, ended + one)
        return self._free
