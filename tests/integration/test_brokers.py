"""The scheduler's messages over both brokers: the same actors, the same retries, the same end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from typing import Any
from uuid import uuid4

import dramatiq
import msgspec
import pytest
from dramatiq import Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from adapters.scheduler import actors, brokers
from adapters.scheduler.brokers import DirectPublisher, SchedulerUnavailable, ThreadPublisher, make_publisher
from adapters.scheduler.embedded import EmbeddedBroker, QueueIsFull
from domain.dispatch import DispatchJob, Job, ReleaseJob, SettleJob
from domain.requests import JobFailure, job_id_of
from tests.conftest import RABBITMQ_URL, missing_service
from tests.support.ledger_brokers import (
    Failure,
    Site,
    close_connections,
    own_queues,
    rabbitmq_answers,
)
from tests.support.ledger_machines import job
from tests.support.ledger_proxy import TcpProxy
from tests.support.ledger_waiting import in_thread, until, until_in_loop


@pytest.fixture
def rabbitmq(monkeypatch: pytest.MonkeyPatch) -> Generator[str, None, None]:
    """The URL of a RabbitMQ on which this test has queues of its own."""
    if not rabbitmq_answers(RABBITMQ_URL):
        missing_service("RabbitMQ")
    with own_queues(monkeypatch, RABBITMQ_URL):
        yield RABBITMQ_URL


@pytest.fixture
def rabbitmq_site(rabbitmq: str) -> Generator[Site, None, None]:
    site = Site(rabbitmq)
    yield site
    close_connections(site.broker)


@pytest.fixture(params=["embedded", "rabbitmq"])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Site, None, None]:
    if request.param == "rabbitmq":
        yield request.getfixturevalue("rabbitmq_site")
        return
    with own_queues(monkeypatch, ""):
        yield Site("")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Generator[EmbeddedBroker, None, None]:
    monkeypatch.setattr("dramatiq.broker.global_broker", None)
    broker = brokers.make_broker("")
    assert isinstance(broker, EmbeddedBroker)
    yield broker
    broker.close()


def completion() -> SettleJob:
    request_id = uuid4()
    return SettleJob(
        request_id=request_id,
        account_id="acct",
        job_id=str(job_id_of(request_id, 1)),
        claimed_prompt_tokens=1,
        claimed_completion_tokens=2,
        completion_bound=3,
    )


def give_up() -> ReleaseJob:
    failure = JobFailure(str(uuid4()), "timeout", 504)
    return ReleaseJob(request_id=uuid4(), account_id="acct", reason="failed", failures=(failure,))


# --- actors on both brokers ------------------------------------------------------------------------------------------


def test_every_job_reaches_the_scheduler_as_it_was_sent(site: Site) -> None:
    sent: list[Job] = [job(excluded=(str(uuid4()),)), completion(), give_up()]
    with site.working():
        for one in sent:
            site.send(one)

        until(lambda: len(site.scheduler.jobs()) == 3, "every job was done")

    assert sorted(site.scheduler.jobs(), key=str) == sorted(sent, key=str)


def test_a_worker_sweeps_when_it_starts(site: Site) -> None:
    with site.working():
        until(lambda: "sweep" in site.scheduler.done, "the sweep was done")

    assert site.scheduler.calls["sweep"] == 1


def test_a_job_that_fails_is_run_again_until_it_succeeds(site: Site) -> None:
    def fail_twice(call: int) -> None:
        if call <= 2:
            raise Failure

    site.scheduler.work = fail_twice
    wanted = job()
    with site.working():
        site.send(wanted)

        until(lambda: site.scheduler.jobs() == [wanted], "the job was done")

    assert site.scheduler.calls["dispatch"] == 3
    assert site.dead_letters(brokers.DISPATCH_QUEUE) == []


def test_an_end_is_tried_far_longer_than_a_dispatch(site: Site) -> None:
    def fail_long(call: int) -> None:
        if call <= 12:
            raise Failure

    site.scheduler.work = fail_long
    ends: list[Job] = [completion(), give_up()]
    with site.working():
        for end in ends:
            site.send(end)

        until(lambda: len(site.scheduler.jobs()) == 2, "both ends were written")

    assert (site.scheduler.calls["settle"], site.scheduler.calls["release"]) == (13, 13)
    assert site.dead_letters(brokers.SETTLE_QUEUE) == []


def test_a_job_that_never_succeeds_ends_as_a_dead_letter_after_its_retries(site: Site) -> None:
    def fail(_: int) -> None:
        raise Failure

    site.scheduler.work = fail
    wanted = job()
    with site.working():
        site.send(wanted)
        until(lambda: site.retries.given_up["dispatch_job"], "the job was given up")
        dead: list[bytes] = []
        until(lambda: dead.extend(site.dead_letters(brokers.DISPATCH_QUEUE)) or dead, "the dead letter is there")
        until(lambda: site.retries.given_up["sweep_requests"], "the sweep was given up")

    [letter] = dead
    assert site.scheduler.calls["dispatch"] == 1 + 3
    assert msgspec.convert(msgspec.json.decode(letter)["args"], tuple[DispatchJob]) == (wanted,)
    assert site.retries.given_up["dispatch_job"] == 1
    # A sweep is not repeated: the next one comes anyway.
    assert (site.scheduler.calls["sweep"], site.retries.given_up["sweep_requests"]) == (1, 1)


def test_no_message_carries_anything_of_the_exceptions_behind_it(site: Site) -> None:
    def fail(_: int) -> None:
        raise Failure

    site.scheduler.work = fail
    with site.working():
        site.send(job())
        until(lambda: site.retries.given_up["dispatch_job"], "the job was given up")
        dead: list[bytes] = []
        until(lambda: dead.extend(site.dead_letters(brokers.DISPATCH_QUEUE)) or dead, "the dead letter is there")

    bodies = [*site.bodies.seen, *dead]
    assert len(bodies) >= 1 + 3 + 1
    for body in bodies:
        for trace in (b"traceback", b"Traceback", b"secret", b"Failure", b"ledger_brokers"):
            assert trace not in body


def test_a_message_for_an_actor_of_a_newer_build_is_not_lost(site: Site) -> None:
    """While one release replaces another, an old scheduler may get what only the new one understands."""
    stranger = Message(
        queue_name=brokers.DISPATCH_QUEUE, actor_name="from_the_future", args=(1,), kwargs={}, options={}
    )
    wanted = job()
    with site.working(threads=1):
        site.broker.enqueue(stranger)
        site.send(wanted)
        until(lambda: site.scheduler.jobs() == [wanted], "the job after it was done")
        left = site.dead_letters(brokers.DISPATCH_QUEUE)

    assert [msgspec.json.decode(body)["actor_name"] for body in left] == ["from_the_future"]


def test_an_actor_that_takes_too_long_is_stopped(site: Site) -> None:
    """Without the signal that a worker has booted, Dramatiq's limits on time do nothing."""
    ended: list[str] = []

    def endless() -> None:
        try:
            while True:
                time.sleep(0.01)
        except dramatiq.middleware.TimeLimitExceeded:
            ended.append("stopped")

    actor = dramatiq.actor(broker=site.broker, queue_name=brokers.SLOW_QUEUE, time_limit=50)(endless)
    with site.working():
        actor.send()
        until(lambda: ended, "the actor was stopped")


def test_a_worker_that_stops_lets_its_running_job_finish(site: Site) -> None:
    started, may_end = threading.Event(), threading.Event()

    def hold(call: int) -> None:
        started.set()
        may_end.wait(30)

    with site.working(threads=4) as worker:
        until(lambda: "sweep" in site.scheduler.done, "the sweep was done")
        site.scheduler.work = hold
        wanted = completion()
        site.send(wanted)
        assert started.wait(30)
        stopping = in_thread(worker.stop)
        may_end.set()
        stopping.result(30)

        assert site.scheduler.jobs() == [wanted]


# --- how a gateway sends ---------------------------------------------------------------------------------------------


async def test_a_gateway_s_messages_reach_the_scheduler(site: Site) -> None:
    publisher = make_publisher(site.broker)
    assert isinstance(publisher, ThreadPublisher if site.url else DirectPublisher)
    sent = [job() for _ in range(50)]
    try:
        await asyncio.gather(*(publisher.send(actors.message_of(one)) for one in sent))
        with site.working(threads=4):
            await until_in_loop(lambda: len(site.scheduler.jobs()) == 50, "every job was done")
    finally:
        await asyncio.to_thread(publisher.close)

    assert {one.request_id for one in site.scheduler.jobs()} == {one.request_id for one in sent}


async def test_sending_does_not_stop_the_loop(rabbitmq_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site, may_send = rabbitmq_site, threading.Event()
    enqueue = site.broker.enqueue

    def slow(*args: Any, **options: Any) -> Any:
        may_send.wait(30)
        return enqueue(*args, **options)

    monkeypatch.setattr(site.broker, "enqueue", slow)
    publisher = make_publisher(site.broker)
    try:
        sending = asyncio.create_task(publisher.send(actors.message_of(job())))
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert not sending.done()
        may_send.set()
        await sending
    finally:
        may_send.set()
        await asyncio.to_thread(publisher.close)


def _proxied(url: str, network: TcpProxy) -> str:
    scheme, _, rest = url.partition("@")
    _, _, path = rest.partition("/")
    return f"{scheme}@127.0.0.1:{network.port}/{path}"


def _rabbitmq_address(url: str) -> tuple[str, int]:
    host, _, port = url.partition("@")[2].partition("/")[0].partition(":")
    return host, int(port or 5672)


async def test_a_connection_to_rabbitmq_that_breaks_under_the_publisher_is_made_again(rabbitmq_site: Site) -> None:
    worker_site, url = rabbitmq_site, rabbitmq_site.url
    with TcpProxy(*_rabbitmq_address(url)) as network, worker_site.working():
        publisher = make_publisher(brokers.make_broker(_proxied(url, network)))
        sent = []
        try:
            for _ in range(4):
                sent.append(job())
                await publisher.send(actors.message_of(sent[-1]))
                assert network.cut_all() >= 1
            await until_in_loop(lambda: len(worker_site.scheduler.jobs()) >= 4, "every job was done")
        finally:
            await asyncio.to_thread(publisher.close)

    assert {one.request_id for one in worker_site.scheduler.jobs()} == {one.request_id for one in sent}


async def test_a_rabbitmq_that_is_gone_is_reported_and_used_again_once_it_is_back(rabbitmq_site: Site) -> None:
    worker_site, url = rabbitmq_site, rabbitmq_site.url
    address = _rabbitmq_address(url)
    with TcpProxy(*address) as network:
        publisher = make_publisher(brokers.make_broker(_proxied(url, network)))
        port = network.port
        await publisher.send(actors.message_of(job()))
    try:
        with pytest.raises(SchedulerUnavailable):
            await publisher.send(actors.message_of(job()))
        with TcpProxy(*address, port=port):
            await publisher.send(actors.message_of(job()))
            await asyncio.to_thread(publisher.close)
    finally:
        await asyncio.to_thread(publisher.close)

    with worker_site.working():
        await until_in_loop(lambda: len(worker_site.scheduler.jobs()) == 2, "both accepted jobs were done")


async def test_a_sender_that_stops_waiting_does_not_stop_the_publisher(
    rabbitmq_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that hangs up cancels the handler that is just handing its request to the scheduler."""
    ended: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    site, may_send, asked = rabbitmq_site, threading.Event(), threading.Event()
    enqueue = site.broker.enqueue

    def slow(*args: Any, **options: Any) -> Any:
        asked.set()
        may_send.wait(30)
        return enqueue(*args, **options)

    monkeypatch.setattr(site.broker, "enqueue", slow)
    publisher = make_publisher(site.broker)
    try:
        impatient = asyncio.create_task(publisher.send(actors.message_of(job())))
        await asyncio.to_thread(asked.wait, 30)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        may_send.set()

        patient = asyncio.create_task(publisher.send(actors.message_of(job())))
        await until_in_loop(lambda: patient.done() or ended, "the next message is sent, or the publisher ended")
        patient.cancel()
        assert not ended, "the publisher's thread ended"
        await patient
    finally:
        may_send.set()
        await asyncio.to_thread(publisher.close)


async def test_what_is_sent_after_the_end_is_refused(rabbitmq_site: Site) -> None:
    publisher = make_publisher(rabbitmq_site.broker)
    await asyncio.to_thread(publisher.close)

    sending = asyncio.create_task(publisher.send(actors.message_of(job())))
    done, _ = await asyncio.wait([sending], timeout=1)
    sending.cancel()

    assert done, "nobody will ever answer"
    assert isinstance(sending.exception(), SchedulerUnavailable)


async def test_a_publisher_with_too_much_to_send_says_so(rabbitmq_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "PUBLISH_WAITING_MAX", 2)
    site, may_send, asked = rabbitmq_site, threading.Event(), threading.Event()
    enqueue = site.broker.enqueue

    def slow(*args: Any, **options: Any) -> Any:
        asked.set()
        may_send.wait(30)
        return enqueue(*args, **options)

    monkeypatch.setattr(site.broker, "enqueue", slow)
    publisher = make_publisher(site.broker)
    try:
        sending = [asyncio.create_task(publisher.send(actors.message_of(job())))]
        await asyncio.to_thread(asked.wait, 30)
        sending += [asyncio.create_task(publisher.send(actors.message_of(job()))) for _ in range(2)]
        await asyncio.sleep(0)

        with pytest.raises(SchedulerUnavailable):
            await publisher.send(actors.message_of(job()))

        may_send.set()
        await asyncio.gather(*sending)
    finally:
        may_send.set()
        await asyncio.to_thread(publisher.close)


def test_rabbitmq_confirms_what_it_takes(rabbitmq: str) -> None:
    broker = brokers.make_broker(rabbitmq)

    assert isinstance(broker, RabbitmqBroker)
    assert broker.confirm_delivery is True


# --- the embedded broker alone ---------------------------------------------------------------------------------------


async def test_a_full_embedded_queue_refuses_and_takes_again_when_there_is_room() -> None:
    broker = EmbeddedBroker([], queue_messages_max=2)
    broker.declare_queue("dispatch")
    publisher = DirectPublisher(broker)
    message = actors.message_of(job())
    for _ in range(2):
        await publisher.send(message)

    with pytest.raises(SchedulerUnavailable):
        await publisher.send(message)
    with pytest.raises(QueueIsFull):
        broker.enqueue(message)

    next(broker.consume("dispatch"))
    await publisher.send(message)
    publisher.close()
    broker.close()


def test_delayed_messages_come_when_they_are_due_and_not_in_the_order_of_their_sending(
    embedded: EmbeddedBroker,
) -> None:
    later, sooner, now = (actors.message_of(job()) for _ in range(3))
    embedded.enqueue(later, delay=120)
    embedded.enqueue(sooner, delay=40)
    embedded.enqueue(now)

    consumer = embedded.consume("dispatch", prefetch=3)
    came: list[str] = []
    until(lambda: came.extend(one.message_id for one in [next(consumer)] if one) or len(came) == 3, "all came")

    assert came == [now.message_id, sooner.message_id, later.message_id]


def test_a_consumer_holds_no_more_than_its_prefetch(embedded: EmbeddedBroker) -> None:
    for _ in range(3):
        embedded.enqueue(actors.message_of(job()))
    consumer = embedded.consume("dispatch", prefetch=2, timeout=20)

    held = [next(consumer), next(consumer)]
    assert None not in held
    assert next(consumer) is None
    consumer.ack(held[0])
    assert next(consumer) is not None


def test_what_a_stopping_worker_held_goes_back_to_its_queue(embedded: EmbeddedBroker) -> None:
    message = actors.message_of(job())
    embedded.enqueue(message)
    held = next(embedded.consume("dispatch"))

    embedded.consume("dispatch").requeue([held])

    again = next(embedded.consume("dispatch"))
    assert again is not None
    assert again.message_id == message.message_id


def test_a_worker_that_stops_beside_a_full_queue_does_not_wait_for_ever() -> None:
    broker = EmbeddedBroker([], queue_messages_max=1)
    broker.declare_queue("dispatch")
    broker.enqueue(actors.message_of(job()))
    consumer = broker.consume("dispatch")
    held = next(consumer)
    broker.enqueue(actors.message_of(job()))  # the room that it left is taken

    returned = in_thread(lambda: consumer.requeue([held]))

    try:
        assert returned.exception(2) is None
    finally:
        next(broker.consume("dispatch"))
        broker.close()


def test_dead_letters_are_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.scheduler.embedded.DEAD_LETTERS_MAX", 3)
    broker = EmbeddedBroker([])
    broker.declare_queue("dispatch")
    consumer = broker.consume("dispatch", prefetch=1)
    sent = [actors.message_of(job()) for _ in range(5)]
    for message in sent:
        broker.enqueue(message)
        consumer.nack(next(consumer))
    broker.close()

    assert [message.message_id for message in broker.dead_letters] == [message.message_id for message in sent[2:]]


def test_a_flushed_queue_is_empty(embedded: EmbeddedBroker) -> None:
    for _ in range(3):
        embedded.enqueue(actors.message_of(job()))

    embedded.flush("dispatch")

    assert next(embedded.consume("dispatch", timeout=10)) is None
