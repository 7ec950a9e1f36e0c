"""A day of business through a real writer: every kind of command, every way in which a request can end."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from random import Random
from typing import Any
from uuid import UUID

import msgspec

from adapters.postgres.writer import LedgerWriter
from domain.adjusting import ApproveAdjustment, RejectAdjustment
from domain.errors import DarkbloomError
from domain.inviting import CreateInvite, DeactivateInvite, RedeemInvite
from domain.ledger import CloseSession, Command, OpenAccount, OpenSession
from domain.requests import JobFailure, job_id_of
from tests.support.ledger_commands import (
    FIRST_ADMIN,
    PROVIDER_ID,
    SECOND_ADMIN,
    admit,
    dispatch,
    grant,
    propose,
    release,
    settle,
)

CONSUMERS = ("ada", "ben", "cyd")
MACHINES = (("a1" * 32, "dan"), ("b2" * 32, "eve"), ("c3" * 32, ""))
"""Machines, each with the account that it earns for."""


def commands_of(seed: int, rounds: int) -> Generator[Command[Any], None, None]:
    """The same commands for the same seed. Some requests stay open, some commands will be refused."""
    random = Random(seed)
    yield from (OpenAccount(account_id=consumer) for consumer in CONSUMERS)
    yield from (grant(consumer, 5_000, f"{seed}-{consumer}") for consumer in CONSUMERS)
    for machine, owner in MACHINES:
        yield _opening(machine, owner, f"{seed}-{machine}")
    for number in range(rounds):
        consumer = random.choice((*CONSUMERS, "dan"))
        request = UUID(int=random.getrandbits(128), version=4)
        machine, owner = random.choice((*MACHINES, ("d4" * 32, consumer)))
        hold = random.choice((100, 250, 999, 20_000))
        yield admit(consumer, hold, request)
        attempt = random.choice((1, 1, 2))
        failures: tuple[JobFailure, ...] = ()
        if attempt == 2:
            yield dispatch(request, 1, provider=owner, machine=machine)
            failures = (JobFailure(str(job_id_of(request, 1)), "timeout", 504),)
        yield msgspec.structs.replace(dispatch(request, attempt, provider=owner, machine=machine), failures=failures)
        fate = random.random()
        if fate < 0.6:
            cost, fee = random.choice((1, hold // 2, hold, hold * 2)), random.choice((0, 5, 33))
            for _ in range(random.choice((1, 1, 2))):  # a message that comes twice
                yield settle(consumer, request, cost, attempt, fee_percent=fee)
        elif fate < 0.85:
            yield release(consumer, request, random.choice(("failed", "cancelled", "expired")))
        if random.random() < 0.1:
            yield grant(consumer, random.randrange(1, 2_000), f"{seed}-{number}")
    for number in range(6):
        yield from _adjusting(Random(f"{seed}-{number}"))
    yield from _inviting(Random(f"{seed}-invites"), f"DAY-{seed}")
    machine, _ = MACHINES[0]
    yield CloseSession(
        machine_id=machine, session_id=f"{seed}-{machine}", requests_served=1, tokens_generated=60, reason="bye"
    )


def _adjusting(random: Random) -> Iterator[Command[Any]]:
    """One admin proposes, and mostly another one approves; some are rejected, wait, or would take too much."""
    amount = random.choice((-300, -1, 1, 700))
    proposal = propose(
        random.choice((*CONSUMERS, "dan")),
        amount,
        adjustment_id=UUID(int=random.getrandbits(128), version=4),
        bucket=random.choice(("promotional", "promotional", "provider")),
    )
    yield proposal
    fate = random.random()
    if fate < 0.7:
        approval = ApproveAdjustment(
            actor=SECOND_ADMIN,
            correlation_id=str(proposal.adjustment_id),
            adjustment_id=proposal.adjustment_id,
        )
        yield from (approval,) * random.choice((1, 2))
    elif fate < 0.85:
        yield RejectAdjustment(
            actor=SECOND_ADMIN, correlation_id=str(proposal.adjustment_id), adjustment_id=proposal.adjustment_id
        )


def _inviting(random: Random, prefix: str) -> Iterator[Command[Any]]:
    """Codes of one and of two uses that everybody tries twice, the last one ended in between."""
    for number, uses in enumerate((1, 2, 2)):
        code = f"{prefix}-{number}"
        yield CreateInvite(actor=FIRST_ADMIN, code=code, amount_micro_usd=random.choice((1, 5_000)), max_uses=uses)
        guests = [*CONSUMERS, *CONSUMERS]
        random.shuffle(guests)
        for guest in guests:
            yield RedeemInvite(code=code, account_id=guest)
            if number == 2:
                yield DeactivateInvite(actor=SECOND_ADMIN, code=code)


def _opening(machine: str, owner: str, session: str) -> OpenSession:
    return OpenSession(
        machine_id=machine,
        session_id=session,
        gateway_id=PROVIDER_ID,
        provider_key="provider-key",
        hardware={"chip_name": "M4", "memory_gb": 64},
        models=("acme/small-8bit",),
        account_id=owner,
    )


def run_day(writer: LedgerWriter, seed: int = 1, rounds: int = 40) -> int:
    """Run it; how many commands were written or found to be done already."""
    done = 0
    for command in commands_of(seed, rounds):
        try:
            writer.execute(command)
        except DarkbloomError:
            continue
        done += 1
    return done
