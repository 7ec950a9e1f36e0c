from __future__ import annotations

import threading
import time
from collections.abc import Generator
from queue import Queue
from typing import Any
from uuid import UUID

import dramatiq
import msgspec
import pytest
from dramatiq import Message, Worker
from dramatiq.broker import MessageProxy
from dramatiq.errors import QueueNotFound
from dramatiq.middleware import AgeLimit, Middleware, Retries, ShutdownNotifications, TimeLimit

from adapters.scheduler import actors, brokers, embedded
from adapters.scheduler.brokers import QUEUES, DirectPublisher, SchedulerUnavailable
from adapters.scheduler.embedded import DEAD_LETTERS_MAX, EmbeddedBroker, QueueIsFull
from adapters.scheduler.middleware import BoundedRetries
from adapters.scheduler.worker import SchedulerWorker
from domain.dispatch import DispatchJob, Job, ReleaseJob, SettleJob
from domain.requests import JobFailure

REQUEST = UUID("7d1c2b1e-0000-4000-8000-000000000001")
SECRET = "the-secret-of-a-prompt"
SOON_SECONDS = 20.0
"""How long a test waits for a thread before it says that nothing came."""


def message(actor: str = "work", *args: Any, queue: str = "dispatch", **options: Any) -> Message[Any]:
    return Message(queue_name=queue, actor_name=actor, args=args, kwargs={}, options=options)


@pytest.fixture
def broker() -> Generator[EmbeddedBroker, None, None]:
    middleware: list[Middleware] = [
        AgeLimit(max_age=3_600_000),
        TimeLimit(time_limit=60_000),
        ShutdownNotifications(),
        BoundedRetries(min_backoff_ms=1, max_backoff_ms=2),
    ]
    made = EmbeddedBroker(middleware, queue_messages_max=3)
    for queue in QUEUES:
        made.declare_queue(queue)
    yield made
    made.close()


@pytest.fixture
def worker(broker: EmbeddedBroker) -> Generator[Worker, None, None]:
    made = Worker(broker, worker_threads=1, worker_timeout=20)
    broker.emit_after("process_boot")
    yield made
    made.stop(timeout=10_000)


class Done(Middleware):
    """Says which messages were processed for good: acknowledged, or dead."""

    def __init__(self) -> None:
        self.acknowledged: Queue[str] = Queue()
        self.dead: Queue[str] = Queue()

    def after_ack(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        self.acknowledged.put(message.actor_name)

    def after_nack(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        self.dead.put(message.actor_name)


@pytest.fixture
def done(broker: EmbeddedBroker) -> Done:
    made = Done()
    broker.add_middleware(made)
    return made


class TestQueues:
    def test_messages_come_out_in_the_order_in_which_they_were_sent(self, broker: EmbeddedBroker) -> None:
        for number in range(3):
            broker.enqueue(message("work", number))
        consumer = broker.consume("dispatch", prefetch=3, timeout=1_000)
        assert [next(consumer).args for _ in range(3)] == [(0,), (1,), (2,)]

    def test_a_full_queue_refuses_and_keeps_what_it_has(self, broker: EmbeddedBroker) -> None:
        for number in range(3):
            broker.enqueue(message("work", number))
        with pytest.raises(QueueIsFull):
            broker.enqueue(message("work", 3))
        broker.enqueue(message("work", 0, queue="settle"))
        consumer = broker.consume("dispatch", prefetch=3, timeout=1_000)
        assert [next(consumer).args for _ in range(3)] == [(0,), (1,), (2,)]

    def test_an_empty_queue_has_nothing_to_give(self, broker: EmbeddedBroker) -> None:
        assert next(broker.consume("dispatch", prefetch=1, timeout=1)) is None

    def test_a_worker_holds_no_more_than_it_may(self, broker: EmbeddedBroker) -> None:
        for number in range(3):
            broker.enqueue(message("work", number))
        consumer = broker.consume("dispatch", prefetch=2, timeout=1)
        first, second = next(consumer), next(consumer)
        assert next(consumer) is None
        consumer.ack(first)
        third = next(consumer)
        assert third is not None
        assert third.args == (2,)
        assert second is not None

    def test_a_flushed_queue_is_empty(self, broker: EmbeddedBroker) -> None:
        broker.enqueue(message())
        broker.flush("dispatch")
        assert next(broker.consume("dispatch", timeout=1)) is None

    @pytest.mark.parametrize("use", ["consume", "flush", "enqueue"])
    def test_an_unknown_queue_is_an_error(self, broker: EmbeddedBroker, use: str) -> None:
        argument: Any = message(queue="nowhere") if use == "enqueue" else "nowhere"
        with pytest.raises(QueueNotFound):
            getattr(broker, use)(argument)

    def test_a_queue_is_declared_once(self, broker: EmbeddedBroker) -> None:
        broker.enqueue(message())
        broker.declare_queue("dispatch")
        assert next(broker.consume("dispatch", timeout=1_000)) is not None

    def test_what_a_stopping_worker_hands_back_can_be_taken_again(self, broker: EmbeddedBroker) -> None:
        broker.enqueue(message("work", 1))
        consumer = broker.consume("dispatch", timeout=1_000)
        taken = next(consumer)
        assert taken is not None
        consumer.requeue([taken])
        again = next(broker.consume("dispatch", timeout=1_000))
        assert again is not None
        assert again.args == (1,)

    def test_handing_back_to_a_full_queue_does_not_hang_the_shutdown(self, broker: EmbeddedBroker) -> None:
        # Given a worker that holds one message while the queue behind it filled up,
        broker.enqueue(message("work", 0))
        consumer = broker.consume("dispatch", timeout=1_000)
        taken = next(consumer)
        assert taken is not None
        for number in range(3):
            broker.enqueue(message("work", number))
        # when it stops and hands its message back,
        stopping = threading.Thread(target=consumer.requeue, args=([taken],), daemon=True)
        stopping.start()
        stopping.join(2.0)
        hung = stopping.is_alive()
        broker.flush("dispatch")
        stopping.join(SOON_SECONDS)
        # then that comes to an end.
        assert not hung


class TestDelays:
    def test_a_delayed_message_comes_when_it_is_due(self, broker: EmbeddedBroker) -> None:
        broker.enqueue(message("late"), delay=30)
        broker.enqueue(message("now"))
        consumer = broker.consume("dispatch", prefetch=2, timeout=int(SOON_SECONDS * 1_000))
        first, second = next(consumer), next(consumer)
        assert first is not None
        assert second is not None
        assert (first.actor_name, second.actor_name) == ("now", "late")

    def test_the_earliest_comes_first_whenever_it_was_sent(self) -> None:
        arrived: Queue[str] = Queue()
        line = embedded._DelayLine(lambda one: arrived.put(one.actor_name))
        base = time.monotonic() + 0.05
        for due, name in ((0.3, "third"), (0.1, "first"), (0.2, "second")):
            line.add(base + due / 10, message(name))
        assert [arrived.get(timeout=SOON_SECONDS) for _ in range(3)] == ["first", "second", "third"]
        line.close()

    def test_messages_that_are_due_together_keep_their_order(self) -> None:
        arrived: Queue[Any] = Queue()
        line = embedded._DelayLine(lambda one: arrived.put(one.args[0]))
        due = time.monotonic() + 0.1
        for number in range(50):
            line.add(due, message("work", number))
        assert [arrived.get(timeout=SOON_SECONDS) for _ in range(50)] == list(range(50))
        line.close()

    def test_a_message_that_finds_a_full_queue_waits_on(self) -> None:
        arrived: Queue[Any] = Queue()
        tries: Queue[int] = Queue()

        def hand_over(one: Message[Any]) -> None:
            tries.put(1)
            if tries.qsize() < 3:
                raise QueueIsFull
            arrived.put(one.args[0])

        line = embedded._DelayLine(hand_over)
        line.add(time.monotonic() - 10, message("work", "patient"))
        assert arrived.get(timeout=SOON_SECONDS) == "patient"
        line.close()

    def test_what_waits_is_bounded(self, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "QUEUE_MESSAGES_MAX", 2)
        for _ in range(2):
            broker.enqueue(message(), delay=60_000)
        with pytest.raises(QueueIsFull):
            broker.enqueue(message(), delay=60_000)

    def test_a_delayed_message_for_an_unknown_queue_is_refused_at_once(self, broker: EmbeddedBroker) -> None:
        with pytest.raises(QueueNotFound):
            broker.enqueue(message(queue="nowhere"), delay=60_000)

    def test_closing_does_not_wait_for_what_is_far_away(self, broker: EmbeddedBroker) -> None:
        broker.enqueue(message(), delay=3_600_000)
        broker.close()


class TestWorking:
    def test_a_worker_runs_an_actor(self, broker: EmbeddedBroker, worker: Worker) -> None:
        seen: Queue[Any] = Queue()
        dramatiq.actor(seen.put, broker=broker, queue_name="dispatch", actor_name="work")
        worker.start()
        broker.enqueue(message("work", {"a": 1}))
        assert seen.get(timeout=SOON_SECONDS) == {"a": 1}

    def test_a_message_for_nobody_is_a_dead_letter(self, broker: EmbeddedBroker, worker: Worker, done: Done) -> None:
        worker.start()
        broker.enqueue(message("nobody"))
        assert done.dead.get(timeout=SOON_SECONDS) == "nobody"
        assert [one.actor_name for one in broker.dead_letters] == ["nobody"]

    def test_dead_letters_are_bounded_and_keep_the_newest(self, broker: EmbeddedBroker) -> None:
        consumer = broker.consume("dispatch", prefetch=1, timeout=1)
        for number in range(DEAD_LETTERS_MAX + 5):
            consumer.nack(MessageProxy(message("work", number)))
        assert len(broker.dead_letters) == DEAD_LETTERS_MAX
        assert broker.dead_letters[-1].args == (DEAD_LETTERS_MAX + 4,)


class TestFailures:
    def fail(self, broker: EmbeddedBroker, **options: Any) -> Queue[int]:
        """Declare an actor whose failure quotes what it was given; returns a queue of its runs."""
        runs: Queue[int] = Queue()

        def work(what: str) -> None:
            runs.put(1)
            raise ValueError(f"could not use {what} {SECRET}")

        dramatiq.actor(work, broker=broker, queue_name="dispatch", **options)
        return runs

    def test_a_failed_message_runs_again_until_it_is_given_up(
        self, broker: EmbeddedBroker, worker: Worker, done: Done
    ) -> None:
        runs = self.fail(broker, max_retries=3)
        worker.start()
        broker.enqueue(message("work", "it"))
        assert done.dead.get(timeout=SOON_SECONDS) == "work"
        assert runs.qsize() == 4
        assert _retries(broker).given_up == {"work": 1}

    def test_an_actor_without_a_limit_of_its_own_has_the_middlewares(
        self, broker: EmbeddedBroker, worker: Worker, done: Done
    ) -> None:
        runs = self.fail(broker)
        _retries(broker).max_retries = 1
        worker.start()
        broker.enqueue(message("work", "it"))
        done.dead.get(timeout=SOON_SECONDS)
        assert runs.qsize() == 2

    def test_neither_a_retry_nor_a_dead_letter_says_what_went_wrong(
        self, broker: EmbeddedBroker, worker: Worker, done: Done
    ) -> None:
        self.fail(broker, max_retries=2)
        worker.start()
        broker.enqueue(message("work", "it"))
        done.dead.get(timeout=SOON_SECONDS)
        (dead,) = broker.dead_letters
        assert dead.options == {"retries": 2}
        assert SECRET.encode() not in dead.encode()
        assert b"Traceback" not in dead.encode()
        assert not hasattr(dead, "_exception")

    def test_the_log_names_the_error_and_not_its_text(
        self, broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.fail(broker, max_retries=0)
        failed = MessageProxy(message("work", "it"))
        _retries(broker).after_process_message(broker, failed, exception=ValueError(SECRET))
        assert "ValueError" in caplog.text
        assert SECRET not in caplog.text

    def test_a_message_that_succeeds_is_not_touched(self, broker: EmbeddedBroker) -> None:
        fine = MessageProxy(message("work", "it"))
        _retries(broker).after_process_message(broker, fine)
        assert (fine.options, fine.failed) == ({}, False)

    def test_the_delay_grows_up_to_its_bound(self, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail(broker, max_retries=50)
        retries = BoundedRetries(min_backoff_ms=100, max_backoff_ms=1_000)
        delays: list[int] = []
        monkeypatch.setattr(EmbeddedBroker, "enqueue", lambda _, one, *, delay: delays.append(delay))
        failed = MessageProxy(message("work", "it"))
        for _ in range(12):
            retries.after_process_message(broker, failed, exception=ValueError())
        assert failed.options == {"retries": 12}
        assert all(0 < delay <= 1_000 for delay in delays)
        assert delays[0] <= 200
        assert min(delays[6:]) >= 500

    def test_a_retry_that_finds_no_room_is_given_up_and_not_lost(
        self, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fail(broker, max_retries=5)
        monkeypatch.setattr(embedded, "QUEUE_MESSAGES_MAX", 0)
        failed = MessageProxy(message("work", "it"))
        broker.emit_after("process_message", failed, exception=ValueError())
        assert failed.failed
        assert _retries(broker).given_up == {"work": 1}


def _retries(broker: EmbeddedBroker) -> BoundedRetries:
    return next(one for one in broker.middleware if isinstance(one, BoundedRetries))


DISPATCH = DispatchJob(
    request_id=REQUEST,
    attempt=2,
    account_id="ada",
    model="model",
    size_gb=27.5,
    prompt_tokens=3,
    output_tokens=256,
    excluded=("session",),
    failures=(JobFailure("job", "timeout", 504),),
    reply_to=REQUEST,
    deadline=1_777_000_000.25,
    may_wait=False,
)
SETTLE = SettleJob(
    request_id=REQUEST,
    account_id="ada",
    job_id="job",
    claimed_prompt_tokens=1,
    claimed_completion_tokens=2,
    completion_bound=3,
)
RELEASE = ReleaseJob(
    request_id=REQUEST, account_id="ada", reason="failed", failures=(JobFailure("job", "timeout", 504),)
)


class RecordingScheduler:
    """Stands where the scheduler does its work."""

    def __init__(self) -> None:
        self.done: Queue[tuple[str, Any]] = Queue()

    def dispatch(self, job: DispatchJob) -> None:
        self.done.put(("dispatch", job))

    def settle(self, job: SettleJob) -> None:
        self.done.put(("settle", job))

    def release(self, job: ReleaseJob) -> None:
        self.done.put(("release", job))

    def sweep(self) -> None:
        self.done.put(("sweep", None))


class TestActors:
    @pytest.mark.parametrize(
        ("job", "queue", "actor"),
        [
            (DISPATCH, "dispatch", "dispatch_job"),
            (SETTLE, "settle", "settle_job"),
            (RELEASE, "settle", "release_job"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_a_job_travels_as_plain_json_and_arrives_as_it_was(self, job: Job, queue: str, actor: str) -> None:
        sent = actors.message_of(job)
        assert (sent.queue_name, sent.actor_name) == (queue, actor)
        received = Message.decode(sent.encode())
        assert msgspec.convert(received.args[0], type(job)) == job

    def test_every_kind_of_job_reaches_the_scheduler(self, broker: EmbeddedBroker, worker: Worker) -> None:
        scheduler = RecordingScheduler()
        actors.register(broker, scheduler)  # type: ignore[arg-type]
        worker.start()
        for job in (DISPATCH, SETTLE, RELEASE):
            broker.enqueue(actors.message_of(job))
        broker.enqueue(actors.sweep_message())
        arrived = dict(scheduler.done.get(timeout=SOON_SECONDS) for _ in range(4))
        assert arrived == {"dispatch": DISPATCH, "settle": SETTLE, "release": RELEASE, "sweep": None}

    def test_a_scheduler_process_sweeps_from_the_beginning_and_stops(self, broker: EmbeddedBroker) -> None:
        scheduler = RecordingScheduler()
        actors.register(broker, scheduler)  # type: ignore[arg-type]
        process = SchedulerWorker(broker, threads=2, sweep_seconds=3_600)
        process.start()
        assert scheduler.done.get(timeout=SOON_SECONDS) == ("sweep", None)
        process.stop()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("scheduler-")]


class TestStopping:
    """What is queued here is known to nobody else, so a request's end must not be lost with the process."""

    @pytest.fixture
    def scheduler(self, broker: EmbeddedBroker) -> RecordingScheduler:
        made = RecordingScheduler()
        actors.register(broker, made)  # type: ignore[arg-type]  # it has what the actors call
        return made

    def test_every_end_that_is_queued_is_run_before_a_worker_is_gone(
        self, broker: EmbeddedBroker, scheduler: RecordingScheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, may_work = SchedulerWorker(broker, threads=1, sweep_seconds=3_600), threading.Event()
        monkeypatch.setattr(scheduler, "sweep", lambda: may_work.wait(SOON_SECONDS))
        process.start()
        # Given ends behind work that goes on, and one that waits for its next try
        broker.enqueue(actors.message_of(SETTLE))
        broker.enqueue(actors.message_of(RELEASE))
        broker.enqueue(actors.message_of(SETTLE), delay=3_600_000)

        stopping = threading.Thread(target=process.stop)
        stopping.start()
        may_work.set()
        stopping.join(SOON_SECONDS)

        assert [scheduler.done.get_nowait() for _ in range(3)] == [
            ("settle", SETTLE),
            ("release", RELEASE),
            ("settle", SETTLE),
        ]

    def test_an_end_that_fails_while_the_worker_stops_is_tried_again(
        self, broker: EmbeddedBroker, scheduler: RecordingScheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, tries = SchedulerWorker(broker, threads=1, sweep_seconds=3_600), Queue[SettleJob]()

        def fail_twice(job: SettleJob) -> None:
            tries.put(job)
            if tries.qsize() < 3:
                raise RuntimeError(SECRET)

        monkeypatch.setattr(scheduler, "settle", fail_twice)
        broker.enqueue(actors.message_of(SETTLE))
        process.start()
        process.stop()

        assert tries.qsize() == 3

    def test_an_end_that_cannot_be_recorded_does_not_keep_the_process_for_ever(
        self,
        broker: EmbeddedBroker,
        scheduler: RecordingScheduler,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(job: SettleJob) -> None:
            raise RuntimeError(SECRET)

        monkeypatch.setattr(scheduler, "settle", fail)
        monkeypatch.setattr("adapters.scheduler.worker.DRAIN_SECONDS_MAX", 0.05)
        [retries] = [one for one in broker.middleware if isinstance(one, BoundedRetries)]
        retries.min_backoff_ms = retries.max_backoff_ms = 60_000
        process = SchedulerWorker(broker, threads=1, sweep_seconds=3_600)
        process.start()
        broker.enqueue(actors.message_of(SETTLE))

        process.stop()

        assert "1 requests have no recorded end" in caplog.text

    def test_a_drain_waits_for_no_other_queue(self, broker: EmbeddedBroker) -> None:
        broker.enqueue(message(queue="dispatch"))

        assert broker.drain("settle", seconds=SOON_SECONDS) == 0

    def test_a_drain_says_how_much_is_left(self, broker: EmbeddedBroker) -> None:
        for _ in range(2):
            broker.enqueue(message(queue="settle"))
        broker.enqueue(message(queue="settle"), delay=3_600_000)
        assert broker.drain("settle", seconds=0.01) == 3

        taken = next(broker.consume("settle"))
        assert taken is not None
        broker.consume("settle").ack(taken)
        assert broker.drain("settle", seconds=0.01) == 2

        broker.flush("settle")
        assert broker.drain("settle", seconds=0.01) == 0

    def test_what_was_refused_is_not_waited_for(self, broker: EmbeddedBroker) -> None:
        for _ in range(3):
            broker.enqueue(message(queue="settle"))
        with pytest.raises(QueueIsFull):
            broker.enqueue(message(queue="settle"))
        broker.flush("settle")

        assert broker.drain("settle", seconds=0.01) == 0


class TestTheBrokerOfASingleProcess:
    def test_it_keeps_everything_in_memory_and_no_traceback_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen: list[object] = []
        monkeypatch.setattr(brokers.dramatiq, "set_broker", chosen.append)
        made = brokers.make_broker("")
        try:
            assert isinstance(made, EmbeddedBroker)
            assert made.get_declared_queues() == {"dispatch", "settle", "slow"}
            assert not [one for one in made.middleware if isinstance(one, Retries)]
            assert [one for one in made.middleware if isinstance(one, BoundedRetries)]
            assert chosen == [made]
            assert isinstance(brokers.make_publisher(made), DirectPublisher)
        finally:
            made.close()


class TestPublisher:
    async def test_a_full_broker_is_unavailable_to_a_gateway(self, broker: EmbeddedBroker) -> None:
        publisher = DirectPublisher(broker)
        for _ in range(3):
            await publisher.send(actors.message_of(DISPATCH))
        with pytest.raises(SchedulerUnavailable):
            await publisher.send(actors.message_of(DISPATCH))
        publisher.close()
