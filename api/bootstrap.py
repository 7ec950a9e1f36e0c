"""The one place that wires adapters to the domain and to the handlers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from dramatiq import Broker
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

from adapters.collector import settle_collector
from adapters.crypto.notary import KeyFileNotary, verify_ed25519
from adapters.crypto.sealing import NaclSealing
from adapters.crypto.transport import KeyFile, KeyUnusable, TransportKey, TransportKeys, ring_of_mnemonics
from adapters.identity import privy
from adapters.identity.privy import PrivyUsers
from adapters.identity.session_key import ISSUER, SessionKey
from adapters.identity.tokens import TokenVerifier, TrustedIssuer, VerificationKeys
from adapters.mail.log import LoggedMail
from adapters.mail.smtp import SmtpMail
from adapters.postgres import migrate
from adapters.postgres.api_keys import StoredKeys
from adapters.postgres.audit import StoredAccesses, StoredReplayRuns
from adapters.postgres.batches import StoredBatches
from adapters.postgres.credentials import StoredCredentials, find_api_key
from adapters.postgres.device_codes import StoredDeviceCodes
from adapters.postgres.embedded import EmbeddedPostgres, running_dsn
from adapters.postgres.files import StoredFiles
from adapters.postgres.people import StoredPeople
from adapters.postgres.pool import AsyncConnection, connection_of, make_async_pool, open_pool, reading_of
from adapters.postgres.recent_callers import RecentCallers
from adapters.postgres.replies import StoredReplies
from adapters.postgres.revocations import RevocationWatch
from adapters.postgres.sealed_requests import SealedRequests
from adapters.postgres.sign_in_codes import StoredSignInCodes
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
from api.consumer.batch_runner import BatchRunner
from api.consumer.inference import Timeouts
from api.consumer.rate_limits import Defaults, RateLimits
from api.coordinator import Coordinator
from api.identity.desk import IdentityDesk
from api.identity.devices import DeviceLogin
from api.identity.doorkeeper import Doorkeeper, Sessions
from api.identity.limits import IdentityLimits
from api.identity.ports import Mail
from api.identity.sign_in import EmailSignIn
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
from projections.invite_codes import StoredInvites
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


def sealing_key_file_of(settings: Settings) -> KeyFile | None:
    """Where the key that consumers seal to lives; None where it comes from words, or where there is none."""
    if settings.sealing_key_file is not None:
        return KeyFile(settings.sealing_key_file.expanduser().absolute())
    if settings.mnemonic or settings.database_url:
        return None
    return KeyFile(_data_dir(settings) / "sealing.key")


def transport_keys_of(settings: Settings) -> TransportKeys | None:
    """None where no key is configured and none may be made: in production, and where several gateways need the same.

    Raises:
        InvalidRequest: the configured key cannot be used.
    """
    file = sealing_key_file_of(settings)
    try:
        if file is not None and settings.development and not file.path.exists():
            file.rotate()
        if file is not None and (file.path.exists() or settings.sealing_key_file is not None):
            return TransportKeys(file.read)
        if settings.mnemonic:
            ring = ring_of_mnemonics(settings.mnemonic, settings.previous_mnemonic, time.time())
            return TransportKeys(lambda: ring)
    except KeyUnusable as error:
        raise InvalidRequest(str(error)) from None
    log.warning("requests cannot be sealed to this gateway; they could with DARKBLOOM_SEALING_KEY_FILE")
    return None


def rotate_sealing_key(settings: Settings) -> TransportKey:
    """Raises InvalidRequest when the key is not in a file that can be used."""
    file = sealing_key_file_of(settings)
    if file is None:
        raise InvalidRequest("set DARKBLOOM_SEALING_KEY_FILE to the file of the sealing key")
    try:
        return file.rotate()
    except KeyUnusable as error:
        raise InvalidRequest(str(error)) from None


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
    identity = identity_parts(settings)
    transport_keys = transport_keys_of(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(make_async_pool(dsn, size_max=GATEWAY_CONNECTIONS_MAX))
            audit_pool = stack.enter_context(open_pool(dsn, size_max=AUDIT_CONNECTIONS_MAX))
            callers = RecentCallers(StoredCredentials(pool))
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
            users = privy_users_of(settings)
            if users is not None:
                stack.push_async_callback(users.close)
            app.state.identity = identity_desk(settings, identity, pool, callers, writer, users)
            credentials = app.state.identity.doorkeeper
            app.state.coordinator = Coordinator(
                ledger=writer,
                books=_Books(partial(connection_of, pool)),
                transparency=transparency_log(partial(connection_of, pool)),
                credentials=credentials,
                keys=StoredKeys(pool, on_revoked=callers.forget),
                replies=StoredReplies(pool, claim_seconds=settings.hold_seconds, keep_seconds=settings.reply_seconds),
                sealed_requests=SealedRequests(pool, transport_keys),
                files=StoredFiles(pool),
                batches=StoredBatches(pool, transport_keys),
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
            app.state.invites = StoredInvites(partial(connection_of, pool))
            app.state.audit = Desk(
                credentials=credentials,
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

            def revoke(key_id: str) -> None:
                callers.forget(key_id)
                switchboard.revoke(key_id)

            revocations = RevocationWatch(dsn, switchboard.keys_in_use, revoke)
            batches = BatchRunner(app.state.coordinator)
            for keeping in (lease.keep(), app.state.coordinator.keep_fleet(), revocations.run(), batches.run()):
                stack.callback(asyncio.create_task(keeping).cancel)
            yield

    return make_app(lifespan, development=settings.development, origins=settings.cors_origins)


def privy_users_of(settings: Settings) -> PrivyUsers | None:
    if not settings.privy_app_id:
        return None
    return PrivyUsers(settings.privy_api_url, settings.privy_app_id, settings.privy_app_secret)


class IdentityParts(NamedTuple):
    """What settings and files say of signing in. ``issuers`` are all whose tokens are sessions here."""

    key: SessionKey | None
    issuers: list[TrustedIssuer]
    mail: Mail | None


def identity_parts(settings: Settings) -> IdentityParts:
    """Read it before anything starts.

    Raises:
        InvalidRequest: a key or the mail server cannot be used.
    """
    try:
        key, issuers, mail = _session_key(settings), _other_issuers(settings), _mail_of(settings)
    except (ValueError, OSError) as error:
        raise InvalidRequest(f"signing in cannot be set up: {error}") from None
    return IdentityParts(key, [*issuers, *([key.issuer] if key else [])], mail)


def identity_desk(
    settings: Settings,
    parts: IdentityParts,
    pool: AsyncConnectionPool[AsyncConnection],
    callers: RecentCallers,
    ledger: LedgerWriter,
    users: PrivyUsers | None,
) -> IdentityDesk:
    """Whatever the settings allow of signing in and device login."""
    key, issuers, mail = parts
    limits = IdentityLimits(
        sign_ins_per_hour=settings.sign_ins_max, device_requests_per_minute=settings.device_requests_max
    )
    people = StoredPeople(pool, ISSUER)
    sign_in = devices = sessions = None
    if key is not None:
        devices = DeviceLogin(StoredDeviceCodes(pool, key.code_hash), limits)
        if mail is not None:
            codes = StoredSignInCodes(pool, key.code_hash)
            sign_in = EmailSignIn(people=people, codes=codes, tokens=key, mail=mail, ledger=ledger, limits=limits)
    if issuers:
        sources = {privy.ISSUER: users} if users is not None else {}
        sessions = Sessions(TokenVerifier(issuers), people, ledger, sources)
    doorkeeper = Doorkeeper(
        callers,
        sessions=sessions,
        admin_key=settings.admin_key,
        admin_emails=settings.admin_emails,
    )
    return IdentityDesk(doorkeeper, limits, people, sign_in, devices, settings.console_url)


def _session_key(settings: Settings) -> SessionKey | None:
    path = settings.session_key_file
    if path is None and settings.database_url:
        return None
    path = path.expanduser().absolute() if path else _data_dir(settings) / "session.key"
    return SessionKey.from_file(path, settings.session_token_seconds)


def _other_issuers(settings: Settings) -> list[TrustedIssuer]:
    """Privy's application and another issuer, as far as they are configured."""
    configured = (
        (
            privy.ISSUER if settings.privy_app_id else "",
            settings.privy_app_id,
            settings.privy_verification_key,
            settings.privy_verification_key_file,
        ),
        (
            settings.session_issuer,
            settings.session_audience,
            settings.session_verification_key,
            settings.session_verification_key_file,
        ),
    )
    found: list[TrustedIssuer] = []
    for name, audience, key, file in configured:
        if name in (ISSUER, *(issuer.name for issuer in found)):
            raise ValueError(f"sessions cannot come from a second issuer {name!r}")
        if name and not audience:
            raise ValueError("set DARKBLOOM_SESSION_AUDIENCE with DARKBLOOM_SESSION_ISSUER")
        if name:
            text = file.expanduser().read_text() if file and not key else key
            found.append(TrustedIssuer(name, audience, VerificationKeys.parse(text)))
    return found


def _mail_of(settings: Settings) -> Mail | None:
    if settings.smtp_url:
        return SmtpMail(settings.smtp_url, settings.mail_from)
    return LoggedMail() if settings.development else None


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
