"""The network's settings in a simulation: the product's own in shape, with shorter times so that more happens in a run.

All times are seconds.
"""

from __future__ import annotations

from types import SimpleNamespace

from api.consumer.inference import Timeouts
from domain.catalog import Catalog, CatalogModel
from domain.routing import Hedging, Policy
from domain.routing.hedging import SAMPLES_MIN

LEASE_SECONDS = 6.0
LEASE_RENEW_SECONDS = 2.0
LEASE_GRACE_SECONDS = 6.0
SWEEP_SECONDS = 2.0
SWEEP_SECONDS_CALM = 30.0
"""Where nothing breaks, nobody has to be found by a sweep."""

HOLD_SECONDS = 150.0
QUEUE_DEPTH_MAX = 12
SCHEDULER_THREADS = 3
FEE_PERCENT = 10

TIMEOUTS = Timeouts(
    queue_wait=20.0,
    no_provider_wait=8.0,
    first_signal=4.0,
    first_content=40.0,
    chunk_gap=10.0,
    request_max=90.0,
    settle_wait=4.0,
    cancel_grace=3.0,
    scheduler_reply=8.0,
)

LIMITS = SimpleNamespace(
    inference_body_bytes_max=1_000_000,
    minimum_charge_micro_usd=100,
    hold_seconds=HOLD_SECONDS,
    challenge_interval_seconds=45.0,
    challenge_answer_seconds=4.0,
    heartbeat_age_seconds_max=15.0,
)

POLICY = Policy(
    minimum_trust="self_signed",
    development=True,
    challenge_age_seconds_max=60.0,
    breaker_seconds=5.0,
    breaker_seconds_max=20.0,
)

SMALL, LARGE = "small", "large"

CATALOG = Catalog(
    {
        SMALL: CatalogModel(id=SMALL, display_name="Small", size_gb=4.0, context_length=8_192, output_max=2_048),
        LARGE: CatalogModel(id=LARGE, display_name="Large", size_gb=20.0, context_length=8_192, output_max=2_048),
    },
    open_to_unlisted=False,
)

HEDGE_PERCENT = 50
HEDGE_QUANTILE = 0.95
LATE_SECONDS = {True: 1.0, False: 3.0}
"""After so long a first content is late: of a streamed answer, and of one in one piece."""


def hedging(*, on: bool) -> Hedging:
    """What a gateway knows that has served many requests before: a run is too short to learn what is late."""
    made = Hedging(HEDGE_PERCENT if on else 0, HEDGE_QUANTILE)
    for model in (SMALL, LARGE):
        for stream, seconds in LATE_SECONDS.items():
            for _ in range(SAMPLES_MIN):
                made.note_first_content((model, stream), seconds)
    return made
