"""The one place that wires adapters to the domain and to the handlers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any
from uuid import UUID

import psycopg
from dramatiq import Broker
from fastapi import FastAPI

from adapters.collector import settle_collector
from adapters.crypto.notary import KeyFileNotary, verify_ed25519
from adapters.crypto.sealing import NaclSealing
from adapters.postgres import migrate
from adapters.postgres.api_keys import StoredKeys
from adapters.postgres.audit import StoredAccesses, StoredReplayRuns
from adapters.postgres.credentials import StoredCredentials, find_api_key
from adapters.postgres.embedded import EmbeddedPostgres, running_dsn
from adapters.postgres.pool import connection_of, make_async_pool, open_pool, reading_of
from adapters.postgres.replies import StoredReplies
from adapters.postgres.revocations import RevocationWatch
from adapters.postgres.writer import LedgerWriter
from adapters.relay.gateways import GatewayRelay
from adapters.relay.mailbox import HttpMailbox, LocalMailbox, Mailbox
from adapters.scheduler.actors import message_of, register
from adapters.scheduler.brokers import make_broker, make_publisher
from adapters.scheduler.dead_letters import DeadLetters
from adapters.scheduler.gateway_fleet import GatewayFleet
from adapters.scheduler.jobs import SchedulerJobs
from adapters.scheduler.leases import GatewayLease
from adapters.scheduler.scheduler import Scheduler
from adapters.scheduler.survey import Survey
from adapters.scheduler.worker import SchedulerWorker
from adapters.settings import Settings
from api.app import make_app
from api.auditors.desk import Desk
from api.consumer.inference import Timeouts
from api.consumer.rate_limits import Defaults, RateLimits
from api.coordinator import Coordinator
from api.inbox import Switchboard
from api.ports import UsageRow
from api.public.ports import TransparencyLog
from domain.catalog import Catalog
from domain.dispatch import DispatchJob
from domain.errors import InvalidRequest
from domain.keys import Caller
from domain.routing import Hedging, Policy
from domain.transparency.note import VerifySignature
from projections.balances import Balances
from projections.books import StoredBooks
from projections.checkpoints import StoredCheckpoints
from projections.diff import Replays
from projections.open_requests import OpenRequests
from projections.registry import lagging
from projections.runner import ProjectionRunner
from projections.spot_check import SpotCheck
from projections.transparency import Connect, StoredTree
from projections.transparency_follower import TransparencyFollower
from projections.usage import UsageEntries

log = logging.getLogger(__name__)

GATEWAY_CONNECTIONS_MAX = 10
AUDIT_CONNECTIONS_MAX = 4

verify_signature: VerifySignature = verify_ed25519
"""How anyone checks the signature under a checkpoint."""


@contextmanager
def database(settings: Settings) -> Generator[str, None, None]:
    """The DSN of the configured server, or of an embedded one that runs as long as the context."""
    if settings.database_url:
        yield settings.database_url
        return
    with EmbeddedPostgres.start(_data_dir(settings)) as server:
        yield server.dsn


@contextmanager
def database_of_command(settings: Settings) -> Generator[str, None, None]:
    """The same for a short command, which also works beside a running coordinator.

    An embedded database is brought up to date; a configured server belongs to somebody who runs the migrations.
    """
    ready = settings.database_url or running_dsn(_data_dir(settings))
    if ready:
        migrate.require_current(ready)
        yield ready
        return
    with database(settings) as dsn:
        migrate.upgrade(dsn)
        yield dsn


def _data_dir(settings: Settings) -> Path:
    return settings.data_dir.expanduser().absolute()


@contextmanager
def ledger_writer(dsn: str, settings: Settings) -> Generator[LedgerWriter, None, None]:
    writer = LedgerWriter(
        dsn,
        [Balances(), UsageEntries(), OpenRequests()],
        queue_max=settings.ledger_queue_max,
        batch_max=settings.ledger_batch_max,
    )
    settle_collector()
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()


@contextmanager
def projection_runner(dsn: str, settings: Settings) -> Generator[ProjectionRunner, None, None]:
    """The read models that may lag, and the check that compares a few wallets with them now and then."""
    runner = ProjectionRunner(dsn, lagging())
    check = SpotCheck(dsn, seconds=settings.spot_check_seconds)
    runner.start()
    check.start()
    try:
        yield runner
    finally:
        check.stop()
        runner.stop()


def notary_of(settings: Settings) -> KeyFileNotary | None:
    """What signs this process's checkpoints; None where another process is to sign them."""
    if settings.checkpoint_key_file is not None:
        return KeyFileNotary(settings.checkpoint_key_file.expanduser().absolute(), settings.log_origin)
    if settings.database_url:
        return None
    return KeyFileNotary(_data_dir(settings) / "checkpoint.key", settings.log_origin)


def _needed_notary(settings: Settings) -> KeyFileNotary:
    notary = notary_of(settings)
    if notary is None:
        raise InvalidRequest("set DARKBLOOM_CHECKPOINT_KEY_FILE to the key file of this log")
    return notary


@contextmanager
def notary_and_database(settings: Settings) -> Generator[tuple[KeyFileNotary, psycopg.Connection[Any]], None, None]:
    """For commands that change the keys of the checkpoints. Raises InvalidRequest without a key file."""
    notary = _needed_notary(settings)
    with database_of_command(settings) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        yield notary, connection


def sign_now(settings: Settings) -> None:
    """Bring the tree to the head of the log and sign it, if there is anything new.

    Raises:
        CheckpointRefused: it would contradict what was signed before.
        TreeDamaged: the stored tree does not fit the log.
    """
    notary = _needed_notary(settings)
    with database_of_command(settings) as dsn:
        follower = TransparencyFollower(dsn, notary, checkpoint_seconds=settings.checkpoint_seconds)
        follower.catch_up()
        follower.sign()


@contextmanager
def transparency_follower(dsn: str, settings: Settings) -> Generator[TransparencyFollower, None, None]:
    notary = notary_of(settings)
    if notary is None:
        log.warning("this process signs no checkpoints; it would with DARKBLOOM_CHECKPOINT_KEY_FILE")
    follower = TransparencyFollower(dsn, notary, checkpoint_seconds=settings.checkpoint_seconds)
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()


def transparency_log(connect: Connect) -> TransparencyLog:
    return TransparencyLog(StoredTree(connect), StoredCheckpoints(connect))


def caller_of(dsn: str, secret: str) -> Caller | None:
    """Who an API key stands for, for commands that act in somebody's name."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return find_api_key(connection, secret)


def policy_of(settings: Settings) -> Policy:
    return Policy(
        minimum_trust=settings.trust_floor,
        development=settings.development,
        challenge_age_seconds_max=settings.challenge_interval_seconds + 60.0,
    )


@contextmanager
def fleet_survey(settings: Settings) -> Generator[Survey, None, None]:
    """The fleet for an operator's commands, judged as the schedulers with these settings do."""
    with database_of_command(settings) as dsn, open_pool(dsn, size_max=1) as pool:
        yield Survey(pool, policy_of(settings), SystemRandom(), relayed=settings.relays)


@contextmanager
def scheduler_worker(
    dsn: str, settings: Settings, broker: Broker, writer: LedgerWriter, local: LocalMailbox | None
) -> Generator[SchedulerWorker, None, None]:
    """The scheduler's threads. ``local`` delivers notices in this process; without it they go over internal HTTP."""
    pool = open_pool(dsn, size_max=settings.scheduler_threads + 1)
    mailbox: Mailbox = local or HttpMailbox(pool, settings.internal_secret)

    def resend(job: DispatchJob) -> None:
        broker.enqueue(message_of(job))

    scheduler = Scheduler(
        writer=writer,
        pool=pool,
        mailbox=mailbox,
        policy=policy_of(settings),
        resend=resend,
        fee_percent=settings.platform_fee_percent,
        queue_depth_max=settings.queue_depth_max,
        claim_seconds=settings.hold_seconds,
        lease_grace_seconds=settings.lease_grace_seconds,
        random=SystemRandom(),
        relayed=settings.relays,
    )
    register(broker, scheduler)
    worker = SchedulerWorker(broker, threads=settings.scheduler_threads, sweep_seconds=settings.sweep_seconds)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        if isinstance(mailbox, HttpMailbox):
            mailbox.close()
        pool.close()


class _Books(StoredBooks):
    async def usage(self, account_id: str, *, before_position: int, limit: int) -> Sequence[UsageRow]:
        rows = await super().usage(account_id, before_position=before_position, limit=limit)
        return [UsageRow(*row) for row in rows]

    async def usage_of(self, account_id: str, job_id: UUID) -> UsageRow | None:
        row = await super().usage_of(account_id, job_id)
        return UsageRow(*row) if row else None


def gateway_app(
    dsn: str,
    settings: Settings,
    broker: Broker,
    writer: LedgerWriter,
    switchboard: Switchboard,
    *,
    owns_database: bool,
) -> FastAPI:
    """The HTTP application. Its lifespan holds the pool, the lease and the way to the scheduler."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(make_async_pool(dsn, size_max=GATEWAY_CONNECTIONS_MAX))
            audit_pool = stack.enter_context(open_pool(dsn, size_max=AUDIT_CONNECTIONS_MAX))
            publisher = make_publisher(broker)
            stack.callback(publisher.close)
            lease = GatewayLease(
                pool,
                settings.internal_url,
                seconds=settings.lease_seconds,
                renew_seconds=settings.lease_renew_seconds,
                on_lost=lambda: app.state.coordinator.suspend(),  # noqa: PLW0108  # the coordinator comes later
                on_renamed=lambda: app.state.coordinator.resume(),  # noqa: PLW0108  # the same
            )
            policy, catalog = policy_of(settings), Catalog.built_in(development=settings.development)
            relay = GatewayRelay(pool, settings.internal_secret) if settings.relays else None
            if relay is not None:
                stack.push_async_callback(relay.close)
            app.state.coordinator = Coordinator(
                ledger=writer,
                books=_Books(partial(connection_of, pool)),
                transparency=transparency_log(partial(connection_of, pool)),
                credentials=StoredCredentials(pool),
                keys=StoredKeys(pool),
                replies=StoredReplies(pool, claim_seconds=settings.hold_seconds, keep_seconds=settings.reply_seconds),
                rate_limits=RateLimits(rate_limits_of(settings)),
                jobs=SchedulerJobs(publisher, writer, fee_percent=settings.platform_fee_percent),
                fleet=GatewayFleet(
                    pool,
                    lambda: lease.gateway_id,
                    policy=policy,
                    size_of=catalog.size_of,
                    relayed=settings.relays,
                ),
                sealing=NaclSealing(),
                gateway=lease,
                catalog=catalog,
                policy=policy,
                timeouts=timeouts_of(settings),
                hedging=Hedging(settings.hedge_percent_max, settings.hedge_quantile),
                settings=settings,
                switchboard=switchboard,
                internal_secret=settings.internal_secret,
                relay=relay,
            )
            app.state.audit = Desk(
                credentials=StoredCredentials(pool),
                accesses=StoredAccesses(pool),
                reading=partial(reading_of, audit_pool),
                ledger=writer,
                runs=StoredReplayRuns(pool),
                replayer=Replays(dsn),
            )
            app.state.dead_letters = DeadLetters(broker)
            if owns_database:
                await lease.end_all()
            await lease.take(lease.gateway_id)
            stack.push_async_callback(lease.end)
            revocations = RevocationWatch(dsn, switchboard.keys_in_use, switchboard.revoke)
            for keeping in (lease.keep(), app.state.coordinator.keep_fleet(), revocations.run()):
                stack.callback(asyncio.create_task(keeping).cancel)
            yield

    return make_app(lifespan, development=settings.development, origins=settings.cors_origins)


def rate_limits_of(settings: Settings) -> Defaults:
    return Defaults(
        requests_per_second=settings.requests_per_second,
        request_burst=settings.rate_limit_burst,
        tokens_per_minute=settings.rate_limit_tokens_per_minute,
        financial_per_second=settings.financial_requests_per_second,
        financial_burst=settings.financial_rate_limit_burst,
        wrong_credentials_per_minute=settings.wrong_credentials_max,
    )


def timeouts_of(settings: Settings) -> Timeouts:
    return Timeouts(
        queue_wait=settings.queue_wait_seconds,
        no_provider_wait=settings.no_provider_wait_seconds,
        first_signal=settings.first_signal_seconds,
        first_content=settings.first_content_seconds,
        chunk_gap=settings.chunk_gap_seconds,
        request_max=settings.request_seconds_max,
        settle_wait=settings.settle_wait_seconds,
        cancel_grace=settings.cancel_grace_seconds,
    )


Serve = Callable[[FastAPI], None]


def run_everything(settings: Settings, serve: Serve) -> None:
    """``darkbloomd up``: gateway, scheduler and projections in one process."""
    if settings.broker_url and not settings.internal_secret:
        settings = settings.model_copy(update={"internal_secret": secrets.token_hex(32)})
    with database(settings) as dsn:
        migrate.upgrade(dsn)
        broker = make_broker(settings.broker_url)
        switchboard = Switchboard()
        local = None if settings.broker_url else LocalMailbox(switchboard.hand_over)
        with (
            ledger_writer(dsn, settings) as writer,
            projection_runner(dsn, settings),
            transparency_follower(dsn, settings),
            scheduler_worker(dsn, settings, broker, writer, local),
        ):
            owns_database = not settings.database_url
            serve(gateway_app(dsn, settings, broker, writer, switchboard, owns_database=owns_database))


def run_gateway(settings: Settings, serve: Serve) -> None:
    """``darkbloomd serve``: a gateway whose scheduler runs elsewhere."""
    migrate.require_current(settings.database_url)
    broker = make_broker(settings.broker_url)
    with ledger_writer(settings.database_url, settings) as writer:
        serve(gateway_app(settings.database_url, settings, broker, writer, Switchboard(), owns_database=False))


def run_scheduler(settings: Settings, wait: Callable[[], None]) -> None:
    """``darkbloomd schedule``: a scheduler for gateways that run elsewhere."""
    migrate.require_current(settings.database_url)
    broker = make_broker(settings.broker_url)
    with (
        ledger_writer(settings.database_url, settings) as writer,
        scheduler_worker(settings.database_url, settings, broker, writer, None),
    ):
        wait()


def run_projections(settings: Settings, wait: Callable[[], None]) -> None:
    """``darkbloomd project``."""
    migrate.require_current(settings.database_url)
    with projection_runner(settings.database_url, settings), transparency_follower(settings.database_url, settings):
        wait()
