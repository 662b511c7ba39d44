"""Prometheus metrics: vLLM's names under the prefix `tessera:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from parallel.requests.replica import ReplicaStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
_STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
_FIRST_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80, 160)
_WHOLE_SECONDS = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 60, 120, 240, 480)


_GAUGES: tuple[tuple[str, str, Callable[[ReplicaStatus], float]], ...] = (
    ("num_requests_running", "Sequences in the batch", lambda s: s.running),
    ("num_requests_waiting", "Sequences that wait for a place", lambda s: s.waiting),
    ("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1", lambda s: s.kv_used_share),
)
_COUNTERS: tuple[tuple[str, str, Callable[[ReplicaStatus], float]], ...] = (
    ("num_preemptions", "Sequences that had to give up their place", lambda s: s.preemptions),
    (
        "prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache",
        lambda s: s.prefix_query_tokens,
    ),
    ("prefix_cache_hits", "Prompt tokens found there", lambda s: s.prefix_hit_tokens),
)


class _Replicas:
    """A collector of what each replica says; its number is the label `engine`."""

    def __init__(self, model: str, status: Callable[[], Sequence[ReplicaStatus]]):
        self._model, self._status = model, status

    def collect(self) -> Iterator[Metric]:
        replicas = self._status()
        for families, kind in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
            for name, text, value in families:
                family = kind(f"tessera:{name}", text, labels=("model_name", "engine"))
                for s in replicas:
                    family.add_metric((self._model, str(s.replica)), value(s))
                yield family


class Metrics:
    """One registry for a front process; every sample carries the model's name. `status` tells of
    the replicas when metrics are asked for."""

    def __init__(self, model: str, status: Callable[[], Sequence[ReplicaStatus]]):
        self._registry = CollectorRegistry()
        self._registry.register(_Replicas(model, status))
        self._model = model
        self.refused = self._counter("requests_refused", "Sequences refused: the queue was full")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens taken in")
        self.generated_tokens = self._counter("generation_tokens", "Tokens generated")
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token", _FIRST_SECONDS
        )
        self.token_seconds = self._histogram(
            "inter_token_latency_seconds", "Between tokens of a request", _STEP_SECONDS
        )
        self.request_seconds = self._histogram(
            "e2e_request_latency_seconds", "From arrival to the last token", _WHOLE_SECONDS
        )
        self.queue_seconds = self._histogram(
            "request_queue_time_seconds", "From arrival to a place in the batch", _WHOLE_SECONDS
        )
        self._finished = Counter(
            "tessera:request_success",
            "Requests that ended, by reason",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )

    def finished(self, reason: str) -> None:
        self._finished.labels(self._model, reason).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        made = Counter(f"tessera:{name}", text, ("model_name",), registry=self._registry)
        return made.labels(self._model)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(
            f"tessera:{name}", text, ("model_name",), registry=self._registry, buckets=buckets
        )
        return made.labels(self._model)
