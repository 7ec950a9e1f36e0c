"""A log of realistic money cycles, made quickly: real events, encoded as they are stored and copied in.

A cycle is the eight events of one paid request, from the hold to the journal entry. Every event belongs to its
aggregate and follows its version, so projections and wallets replay it like a log that was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import psycopg

from domain import events, journal
from domain.eventsourced import Actor, Aggregate, DomainEvent
from domain.journal import JournalEntry, JournalEntryPosted
from domain.pricing import Quote
from domain.requests import InferenceRequest, JobCompleted, JobDispatched, RequestAdmitted, RequestSettled, job_id_of
from domain.wallet import EarningCredited, HoldCaptured, HoldPlaced, PromotionalCreditGranted, Split, Wallet

EVENTS_PER_CYCLE = 8
ACCOUNTS = 500
PROVIDERS = 50
MACHINES = 200
MODELS = tuple(f"acme/model-{number}-8bit" for number in range(6))
BEGINNING = datetime(2026, 5, 1, tzinfo=UTC)
SECONDS_PER_CYCLE = 0.5
QUOTE = Quote(
    input_price=50_000,
    output_price=200_000,
    cache_read_price=25_000,
    source="default",
    book_version=1,
    minimum_charge=100,
)
GATEWAY_ID = "9d0c7a3e-0000-4000-8000-000000000001"

COPY = """
COPY events (position, originator_id, originator_version, topic, recorded_at, state) FROM STDIN (FORMAT BINARY)
"""
MOVE_HEAD = "UPDATE ledger_head SET position = %s, recorded_at = %s"


class _Books:
    """Makes events with the next version of each wallet."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.versions: dict[UUID, int] = {}
        self.now = BEGINNING

    def event(self, cls: type[DomainEvent], aggregate: type[Aggregate], key: str, **payload: Any) -> DomainEvent:
        originator_id = aggregate.id_of(key)
        version = self.versions.get(originator_id, 0) + 1
        if aggregate is Wallet:
            self.versions[originator_id] = version
        return cls(
            originator_id=originator_id,
            originator_version=payload.pop("version", version),
            schema_version=cls.SCHEMA_VERSION,
            timestamp=self.now,
            actor=Actor("system", ""),
            correlation_id=key,
            **payload,
        )

    def opening(self) -> Iterator[DomainEvent]:
        for number in range(ACCOUNTS):
            account_id, amount = f"acct_{number:024x}", 10**15
            yield self.event(
                PromotionalCreditGranted,
                Wallet,
                account_id,
                account_id=account_id,
                amount=amount,
                source="admin_credit",
                reference=str(number),
            )
            yield self._entry(f"credit:{number}", "admin_credit", journal.promotional_credit(account_id, amount))

    def cycle(self) -> Iterator[DomainEvent]:
        random = self.random
        self.now += timedelta(seconds=SECONDS_PER_CYCLE)
        request_id = UUID(int=random.getrandbits(128), version=4)
        key, job_id = str(request_id), str(job_id_of(request_id, 1))
        account_id = f"acct_{random.randrange(ACCOUNTS):024x}"
        machine = random.randrange(MACHINES)
        provider, machine_id = f"prov_{machine % PROVIDERS:024x}", f"{machine:064x}"
        prompt, output = random.randrange(20, 4_000), random.randrange(1, 2_000)
        reserved, cost = QUOTE.charge_micro_usd(prompt, 2_048), QUOTE.charge_micro_usd(prompt, output)
        model, expires_at = MODELS[random.randrange(len(MODELS))], self.now + timedelta(hours=1)
        yield self.event(
            HoldPlaced,
            Wallet,
            account_id,
            account_id=account_id,
            hold_id=key,
            amount=reserved,
            expires_at=expires_at,
            purpose="inference",
        )
        yield self.event(
            RequestAdmitted,
            InferenceRequest,
            key,
            version=1,
            request_id=key,
            account_id=account_id,
            key_id="key_0123456789abcdef",
            gateway_id=GATEWAY_ID,
            model=model,
            prompt_estimate=prompt,
            prompt_bound=prompt,
            output_bound=2_048,
            units_bound=0,
            reserved=reserved,
            quote=QUOTE,
            self_route=False,
            expires_at=expires_at,
        )
        yield self.event(
            JobDispatched,
            InferenceRequest,
            key,
            version=2,
            job_id=job_id,
            attempt=1,
            provider_id=GATEWAY_ID,
            machine_id=machine_id,
            provider_key="Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE=",
            provider_account_id=provider,
            quote=QUOTE,
        )
        yield self.event(
            JobCompleted,
            InferenceRequest,
            key,
            version=3,
            job_id=job_id,
            prompt_tokens=prompt,
            completion_tokens=output,
            units=0,
            cached_tokens=0,
        )
        yield self.event(
            RequestSettled,
            InferenceRequest,
            key,
            version=4,
            request_id=key,
            account_id=account_id,
            model=model,
            job_id=job_id,
            machine_id=machine_id,
            provider_key="Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE=",
            provider_account_id=provider,
            prompt_tokens=prompt,
            completion_tokens=output,
            unit="",
            units=0,
            cached_tokens=0,
            reserved=reserved,
            raw_cost=cost,
            cost=cost,
            clamped=False,
            fee_percent=0,
            fee=0,
            provider_amount=cost,
            referral_percent=0,
            referral_amount=0,
            referrer_account="",
            platform_amount=0,
            free=False,
        )
        split = Split(promotional=cost)
        yield self.event(
            HoldCaptured,
            Wallet,
            account_id,
            account_id=account_id,
            hold_id=key,
            captured=cost,
            released=reserved - cost,
            split=split,
        )
        yield self.event(
            EarningCredited,
            Wallet,
            provider,
            account_id=provider,
            amount=cost,
            kind="provider",
            reference=job_id,
        )
        postings = journal.settlement(
            consumer=account_id,
            split=split,
            provider_account=provider,
            machine_id=machine_id,
            provider_amount=cost,
            platform_amount=0,
        )
        yield self._entry(f"settle:{job_id}", "settlement", postings)

    def _entry(self, key: str, kind: str, postings: tuple[journal.Posting, ...]) -> DomainEvent:
        return self.event(
            JournalEntryPosted,
            JournalEntry,
            key,
            entry_key=key,
            kind=kind,
            effective_at=self.now,
            postings=postings,
            reference=key.partition(":")[2],
            metadata={},
            reverses_entry_id=None,
        )


def fill(dsn: str, events_min: int, *, seed: int = 1) -> int:
    """Fill an empty log with at least so many events; returns how many there are."""
    books = _Books(seed)
    with psycopg.connect(dsn) as connection:
        with connection.cursor().copy(COPY) as copy:
            copy.set_types(["int8", "uuid", "int4", "text", "timestamptz", "bytea"])
            position = 0
            for event in _interleaved(books, events_min):
                position += 1
                row = (position, event.originator_id, event.originator_version, event.TOPIC)
                copy.write_row((*row, books.now, events.encode(event)))
        connection.execute(MOVE_HEAD, (position, books.now))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE events")
    return position


def _interleaved(books: _Books, events_min: int) -> Iterator[DomainEvent]:
    """The opening and then whole cycles."""
    yield from books.opening()
    for _ in range((events_min - 2 * ACCOUNTS + EVENTS_PER_CYCLE - 1) // EVENTS_PER_CYCLE):
        yield from books.cycle()
