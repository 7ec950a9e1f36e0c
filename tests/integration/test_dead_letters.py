"""What the scheduler gave up can be seen, run again and dropped, on both brokers."""

from __future__ import annotations

from collections.abc import Generator
from uuid import uuid4

import pytest

from adapters.scheduler import brokers
from adapters.scheduler.dead_letters import DeadLetters
from domain.dispatch import Job, ReleaseJob, SettleJob
from domain.errors import ServiceUnavailable
from domain.requests import job_id_of
from tests.conftest import RABBITMQ_URL, missing_service
from tests.support.ledger_brokers import Failure, Site, close_connections, own_queues, rabbitmq_answers
from tests.support.ledger_machines import job
from tests.support.ledger_waiting import until


@pytest.fixture(params=["embedded", "rabbitmq"])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Site, None, None]:
    url = RABBITMQ_URL if request.param == "rabbitmq" else ""
    if url and not rabbitmq_answers(url):
        missing_service("RabbitMQ")
    with own_queues(monkeypatch, url):
        site = Site(url)
        monkeypatch.setattr(site.scheduler, "sweep", lambda: 0)  # which a worker sends by itself
        for end in ("settle_job", "release_job"):
            monkeypatch.setitem(site.broker.get_actor(end).options, "max_retries", 2)
        yield site
        close_connections(site.broker)


def dead(site: Site, *jobs: Job) -> DeadLetters:
    """Let the scheduler give up some jobs."""

    def fail(call: int) -> None:
        raise Failure

    site.scheduler.work = fail
    letters = DeadLetters(site.broker)
    with site.working():
        for one in jobs:
            site.send(one)
        until(lambda: letters.newest(1)[1] == len(jobs), "every job was given up")
    site.scheduler.work = lambda _: None
    return letters


def an_end() -> SettleJob:
    request_id = uuid4()
    return SettleJob(
        request_id=request_id,
        account_id="acct",
        job_id=str(job_id_of(request_id, 1)),
        claimed_prompt_tokens=1,
        claimed_completion_tokens=2,
        completion_bound=3,
    )


def test_dead_letters_are_seen_without_being_taken(site: Site) -> None:
    lost, end = job(attempt=2), ReleaseJob(request_id=uuid4(), account_id="acct", reason="failed")
    letters = dead(site, lost, end)
    for _ in range(2):
        seen, total = letters.newest(10)
        assert total == 2
        assert {(one.actor, one.request_id, one.attempt) for one in seen} == {
            ("dispatch_job", str(lost.request_id), 2),
            ("release_job", str(end.request_id), None),
        }
    assert len(letters.newest(1)[0]) == 1


def test_a_dead_letter_that_is_replayed_is_done(site: Site) -> None:
    end, other = an_end(), an_end()
    letters = dead(site, end, other)
    wanted = next(one for one in letters.newest(10)[0] if one.request_id == str(end.request_id))

    assert letters.replay([wanted.message_id, "never-sent"]) == 1

    with site.working():
        until(lambda: site.scheduler.jobs() == [end], "the end was written")
    assert [one.request_id for one in letters.newest(10)[0]] == [str(other.request_id)]


def test_one_that_fails_again_is_dead_again_after_as_many_tries(site: Site) -> None:
    def fail(call: int) -> None:
        raise Failure

    site.scheduler.work = fail
    letters = DeadLetters(site.broker)
    with site.working():
        site.send(job())
        until(lambda: letters.newest(1)[1] == 1, "it was given up")
        tries = site.scheduler.calls["dispatch"]

        assert letters.replay(None) == 1

        until(lambda: site.scheduler.calls["dispatch"] == 2 * tries, "it was tried as often again")
        until(lambda: letters.newest(1)[1] == 1, "it was given up again")


def test_dropped_ones_are_gone(site: Site) -> None:
    letters = dead(site, an_end(), an_end(), job())
    [one, *_], _ = letters.newest(10)
    assert letters.drop([one.message_id]) == 1
    assert letters.newest(10)[1] == 2
    assert letters.drop(None) == 2
    assert letters.newest(10) == ([], 0)
    assert site.scheduler.jobs() == []


@pytest.mark.parametrize("site", ["rabbitmq"], indirect=True)
def test_a_broker_that_is_away_is_said_to_be(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = brokers.pika.URLParameters("amqp://guest:guest@127.0.0.1:1/")
    monkeypatch.setattr(site.broker, "parameters", parameters)
    with pytest.raises(ServiceUnavailable):
        DeadLetters(site.broker).newest(1)
