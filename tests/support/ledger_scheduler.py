"""A scheduler over the real ledger and the real fleet table, whose notices and resent messages a test can read."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import UUID, uuid4

from psycopg_pool import ConnectionPool

from adapters.postgres.writer import LedgerWriter
from adapters.scheduler.scheduler import Scheduler
from domain.dispatch import DispatchJob
from domain.routing import Policy
from tests.support.ledger_commands import EXPIRES_AT, GATEWAY, account, admit, grant
from tests.support.ledger_machines import RecordingMailbox, job

CLAIM_SECONDS = 3_690.0


class SchedulerScene:
    """``resent`` are the jobs that the scheduler sent itself again, as the broker would get them."""

    def __init__(
        self,
        writer: LedgerWriter,
        pool: ConnectionPool[Any],
        *,
        queue_depth_max: int = 10,
        lease_grace_seconds: float = 30.0,
    ) -> None:
        self.writer = writer
        self.mailbox = RecordingMailbox()
        self.resent: list[DispatchJob] = []
        self.consumer = account("consumer")
        self.scheduler = Scheduler(
            writer=writer,
            pool=pool,
            mailbox=self.mailbox,
            policy=Policy(),
            resend=self.resent.append,
            fee_percent=10,
            queue_depth_max=queue_depth_max,
            claim_seconds=CLAIM_SECONDS,
            lease_grace_seconds=lease_grace_seconds,
            random=Random(7),
        )
        self.fleet = self.scheduler.fleet
        writer.execute(grant(self.consumer, 1_000_000))

    def admitted(self, *, gateway_id: UUID = GATEWAY, amount: int = 100, expires_at: Any = EXPIRES_AT) -> UUID:
        """A request that waits for a machine."""
        request_id = uuid4()
        self.writer.execute(admit(self.consumer, amount, request_id, gateway_id=gateway_id, expires_at=expires_at))
        return request_id

    def asked(self, **changes: Any) -> DispatchJob:
        """The job of a request that was just admitted."""
        gateway_id = changes.get("reply_to", GATEWAY)
        return job(self.admitted(gateway_id=gateway_id), account_id=self.consumer, **changes)
