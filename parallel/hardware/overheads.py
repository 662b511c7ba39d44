"""What this runtime adds to its products and collectives on a device, as calibration measured it.

Seconds of a layer that are neither a product with a weight nor a collective, for T tokens of S
sequences; each term has one cause:

    layer_seconds                                   starts of its kernels, attention's included
    + S · layer_sequence_seconds                    attention, once for each sequence
    + T · elements · b / elementwise_bandwidth      norms, rotary, activation, sums
    + cached bytes / cache_bandwidth                keys and values gathered from their blocks
    + attention flops / attention_flops_per_second  scores and weighted sums

`elements` of a layer are 10·hidden + 4·(query + KV heads)·head_dim + 3·FFN columns of the rank (2
where the FFN isn't gated), of b bytes each; attention does 4·query heads·head_dim flops for each
query-key pair; a sequence's cached bytes are 2·KV heads·head_dim·b for each token of its context.

A step adds step_seconds + S · sequence_seconds + logits · logit_seconds, whatever its layers.

Ranks that sum over tensor parallelism wait for the last of them at each collective; a stage of
several ranks takes late_seconds for each collective and late_share of what it computes longer.
A stage that receives takes way_seconds for each batch beyond its bytes: threads that must wake
while the sender computes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from parallel.hardware.fields import Fields, in_unit


@dataclass(frozen=True)
class Overheads:
    """Of one rank. Rates of None aren't known.

    `step_seconds`: scheduling, messages to the ranks, inputs, answers, and waking the ranks that
    wait. `sequence_seconds`: the same for each sequence in the step. `logit_seconds`: conversion
    and arg-max for each logit of a sampled row. `plain_product_share`: how fast a product with a
    weight that can't be packed is beside a packed one, such as a tied head's.
    `host_bytes_per_second`: blocks of the cache swapped to host memory, or back."""

    layer_seconds: float = 0.0
    layer_sequence_seconds: float = 0.0
    elementwise_bytes_per_second: float | None = None
    cache_bytes_per_second: float | None = None
    attention_flops_per_second: float | None = None
    step_seconds: float = 0.0
    sequence_seconds: float = 0.0
    logit_seconds: float = 0.0
    plain_product_share: float = 1.0
    late_seconds: float = 0.0
    late_share: float = 0.0
    way_seconds: float = 0.0
    host_bytes_per_second: float | None = None

    def layer(
        self, sequences: int, elementwise_bytes: float, cached_bytes: float, attention_flops: float
    ) -> float:
        """Seconds of a layer beside its products and collectives; unknown rates count nothing."""
        rates = (
            (elementwise_bytes, self.elementwise_bytes_per_second),
            (cached_bytes, self.cache_bytes_per_second),
            (attention_flops, self.attention_flops_per_second),
        )
        return (
            self.layer_seconds
            + sequences * self.layer_sequence_seconds
            + sum(amount / rate for amount, rate in rates if rate is not None)
        )

    def late(self, collectives: int, computed_seconds: float) -> float:
        """Seconds that a stage of several ranks waits for the last of them."""
        return collectives * self.late_seconds + computed_seconds * self.late_share

    def step(self, sequences: int, logits: int) -> float:
        """Seconds of a step beside its layers and its head's product."""
        return self.step_seconds + sequences * self.sequence_seconds + logits * self.logit_seconds


def _key(name: str) -> tuple[str, float]:
    """A field's YAML key and what one of it is worth: microseconds, nanoseconds for a logit, giga
    per second."""
    if name == "logit_seconds":
        return "logit_nanoseconds", 1e-9
    if name.endswith("bytes_per_second"):
        return name.replace("bytes_per_second", "gb_per_second"), 1e9
    if name.endswith("flops_per_second"):
        return name.replace("flops_per_second", "gigaflops"), 1e9
    if name.endswith("_seconds"):
        return name.replace("_seconds", "_microseconds"), 1e-6
    return name, 1.0


_KEYS = {f.name: _key(f.name) for f in fields(Overheads)}


def read_overheads(value: object, where: str) -> Overheads:
    """Raises `HardwareError` for an unknown key or a value that is out of range."""
    given = Fields(value, where, [key for key, _ in _KEYS.values()])
    return Overheads(
        **{
            name: unit * given.number(key, zero=unit < 1 or name == "late_share")
            for name, (key, unit) in _KEYS.items()
            if key in given
        }
    )


def overheads_document(overheads: Overheads) -> dict[str, float]:
    """What `read_overheads` reads back."""
    values = asdict(overheads)
    return {
        key: in_unit(values[name], unit)
        for name, (key, unit) in _KEYS.items()
        if values[name] is not None
    }
