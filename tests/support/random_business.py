"""A seeded random business over the ledger: every command, many at a time, repeated and refused ones too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any
from uuid import UUID

import msgspec

from adapters.postgres.writer import LedgerWriter
from domain.errors import DarkbloomError
from domain.inviting import CreateInvite, DeactivateInvite, RedeemInvite
from domain.ledger import CloseSession, GrantCredit, OpenAccount, OpenSession, Release
from domain.requests import JobFailure, job_id_of
from tests.support.ledger_commands import admit, dispatch, release, settle

ACCOUNTS = [f"acct_{number}" for number in range(12)]
MACHINES = [f"{number:064x}" for number in range(6)]
OWNERS = ["", "acct_0", "acct_1", "prov_0", "prov_1", "prov_1"]
"""Whom each machine earns for: one for nobody, two for accounts that also consume."""

AT_A_TIME = 60


def do_business(writer: LedgerWriter, operations: int, seed: int) -> None:
    """Run so many random commands; refusals count as well."""
    asyncio.run(_run(writer, random_commands(Random(seed)), operations))


async def _run(writer: LedgerWriter, commands: Iterator[Any], operations: int) -> None:
    for begin in range(0, operations, AT_A_TIME):
        batch = [next(commands) for _ in range(min(AT_A_TIME, operations - begin))]
        for outcome in await asyncio.gather(*map(writer.run, batch), return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, DarkbloomError):
                raise outcome


def random_commands(random: Random) -> Iterator[Any]:
    admitted: list[tuple[str, UUID]] = []
    attempts: dict[UUID, int] = {}
    done: list[Any] = []
    while True:
        kind = random.choices(
            ("grant", "invite", "admit", "dispatch", "settle", "release", "session", "again"), (2, 1, 6, 6, 5, 1, 1, 1)
        )[0]
        account_id, request_id = random.choice(admitted[-40:] or [("acct_0", UUID(int=0))])
        attempt = attempts.get(request_id, 1)
        command: Any
        if kind == "grant":
            command = GrantCredit(
                account_id=random.choice(ACCOUNTS),
                amount_micro_usd=random.randrange(1, 5_000),
                reference=f"{random.getrandbits(64):x}",
                source=random.choice(("admin_credit", "invite_credit")),
            )
        elif kind == "invite":
            command = _invite(random)
        elif kind == "admit":
            request_id = UUID(int=random.getrandbits(128), version=4)
            command = msgspec.structs.replace(
                admit(
                    random.choice(ACCOUNTS), random.randrange(1, 900), request_id, model=f"model-{random.randrange(3)}"
                ),
                prompt_bound=random.randrange(300),
            )
            admitted.append((command.account_id, request_id))
        elif kind == "dispatch":
            attempts[request_id] = attempt = attempt + random.choice((0, 0, 1))
            machine = random.randrange(len(MACHINES))
            command = dispatch(request_id, attempt, provider=OWNERS[machine], machine=MACHINES[machine])
        elif kind == "settle":
            fee = random.choice((0, 0, 5, 100))
            command = msgspec.structs.replace(
                settle(account_id, request_id, random.randrange(1_000), attempt, fee_percent=fee),
                claimed_prompt_tokens=random.randrange(400),
                claimed_cached_tokens=random.choice((0, 0, 1, 200, 500)),
            )
        elif kind == "release":
            failures = (JobFailure(str(job_id_of(request_id, attempt)), "provider_error", 502),)
            command = random.choice(
                (
                    release(account_id, request_id, "cancelled"),
                    Release(request_id=request_id, account_id=account_id, reason="failed", failures=failures),
                )
            )
        elif kind == "session":
            command = _session(random)
        else:
            command = random.choice(done) if done else OpenAccount(account_id="acct_0")
        done.append(command)
        del done[:-200]
        yield command


def _invite(random: Random) -> CreateInvite | RedeemInvite | DeactivateInvite:
    code = f"CODE-{random.randrange(20)}"
    step = random.random()
    if step < 0.3:
        amount, uses = random.randrange(1, 5_000), random.randrange(1, 5)
        return CreateInvite(code=code, amount_micro_usd=amount, max_uses=uses)
    if step < 0.95:
        return RedeemInvite(code=code, account_id=random.choice(ACCOUNTS))
    return DeactivateInvite(code=code)


def _session(random: Random) -> OpenSession | CloseSession:
    machine = random.randrange(len(MACHINES))
    if random.random() < 0.5:
        return CloseSession(
            machine_id=MACHINES[machine], session_id="s", requests_served=1, tokens_generated=1, reason="closed"
        )
    return OpenSession(
        machine_id=MACHINES[machine],
        session_id="s",
        gateway_id="g",
        provider_key="k",
        hardware={"memory_gb": 64},
        models=("model-0",),
        account_id=OWNERS[machine],
    )
