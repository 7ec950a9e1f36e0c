"""What becomes of a line whose try was interrupted, and when a batch ends without its lines."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec
import pytest

from api.consumer.answers import ProviderMessage, Whole, WholeChoice
from api.consumer.batch_run import BatchRun, Draft, Turns
from domain.batches import Line, Status, request_id_of
from domain.dispatch import ReleaseJob
from domain.errors import DecryptionFailed, LedgerUnavailable, UnknownRequest
from domain.requests import RequestReleased, RequestSettled
from tests.support.examples import snapshot

BATCH = UUID("7d1c2b1e-0000-4000-8000-000000000001")
TEXT = json.dumps(
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    }
).encode()
DRAFT = msgspec.json.encode(
    Draft(
        snapshot(), "job", Whole(choices=(WholeChoice(message=ProviderMessage(content="kept"), finish_reason="stop"),))
    )
)


class Work:
    """A batch in memory."""

    batch_id, account_id, key_id, endpoint = BATCH, "account", "key", "/v1/chat/completions"

    def __init__(self, *, waiting: tuple[Line, ...] = (), running: tuple[Line, ...] = ()) -> None:
        self.there = {"waiting": list(waiting), "running": list(running)}
        self.status: Status = "in_progress"
        self.is_over = False
        self.readable = True
        self.results: dict[int, tuple[Any, bool]] = {}

    def unlock(self) -> None:
        if not self.readable:
            raise DecryptionFailed

    async def state(self) -> tuple[Status, bool]:
        return self.status, self.is_over

    async def lines(self, state: str, limit: int) -> list[Line]:
        return self.there[state][:limit]

    async def begin(self, line: Line) -> int:
        self.there["waiting"].remove(line)
        self.there["running"].append(line._replace(tries=line.tries + 1))
        return line.tries + 1

    async def put_back(self, line: Line) -> None:
        self.there["running"] = [one for one in self.there["running"] if one.number != line.number]
        self.there["waiting"].append(line._replace(draft=None))

    async def keep_draft(self, line: Line, draft: bytes) -> None:
        raise AssertionError("no machine answers here")

    async def finish(self, line: Line, result: bytes, *, failed: bool) -> None:
        for lines in self.there.values():
            lines[:] = [one for one in lines if one.number != line.number]
        self.results[line.number] = json.loads(result), failed

    async def end(self, status: Status) -> None:
        self.status = status


class Ledger:
    """The ends that it knows; asking for one that it does not know ends the request."""

    def __init__(self, **ends: Any) -> None:
        self.ends = ends
        self.asked: list[UUID] = []

    async def end_now(self, job: ReleaseJob) -> Any:
        assert (job.account_id, job.reason) == ("account", "failed")
        self.asked.append(job.request_id)
        end = self.ends["end"]
        if isinstance(end, Exception):
            raise end
        return end


def settled() -> Any:
    values = dict.fromkeys(RequestSettled.__struct_fields__, "")
    values |= {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 5, "cost": 100}
    return RequestSettled(**values)


def released() -> Any:
    return RequestReleased(**dict.fromkeys(RequestReleased.__struct_fields__, ""))


async def run(work: Work, ledger: Ledger, *, key_is_valid: bool = False) -> None:
    async def find_key_by_id(key_id: str) -> None:
        assert not key_is_valid

    coordinator: Any = SimpleNamespace(
        jobs=ledger,
        draining=False,
        suspended=False,
        credentials=SimpleNamespace(find_key_by_id=find_key_by_id),
    )
    await BatchRun(coordinator, work, Turns()).run()


async def test_a_try_that_was_charged_is_done_with_the_answer_that_was_kept() -> None:
    work, ledger = Work(running=(Line(4, 2, TEXT, DRAFT),)), Ledger(end=settled())
    await run(work, ledger)
    assert ledger.asked == [request_id_of(BATCH, 4, 2)]
    result, failed = work.results[4]
    assert not failed
    body = result["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "kept"
    assert (body["usage"]["completion_tokens"], body["usage"]["cost_micro_usd"]) == (3, 100)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}
    assert work.status == "completed"


@pytest.mark.parametrize("end", [released(), UnknownRequest()])
@pytest.mark.parametrize("draft", [None, DRAFT])
async def test_a_try_that_was_not_charged_is_put_back_whatever_was_kept(end: Any, draft: bytes | None) -> None:
    work = Work(running=(Line(4, 2, TEXT, draft),))
    await run(work, Ledger(end=end))  # its key is gone, so nothing more of it is started
    assert work.there == {"waiting": [Line(4, 2, TEXT)], "running": []}
    assert work.results == {}
    assert work.status == "failed"


async def test_a_try_that_was_charged_and_left_nothing_is_not_charged_again() -> None:
    work = Work(running=(Line(4, 1, TEXT),))
    await run(work, Ledger(end=settled()))
    result, failed = work.results[4]
    assert failed
    assert result["response"]["status_code"] == 500


async def test_while_the_ledger_cannot_say_a_line_stays_as_it_is() -> None:
    work = Work(running=(Line(4, 1, TEXT, DRAFT),))
    with pytest.raises(LedgerUnavailable):
        await run(work, Ledger(end=LedgerUnavailable()))
    assert work.there["running"]
    assert work.status == "in_progress"


async def test_a_batch_whose_key_is_gone_is_not_run() -> None:
    work = Work(waiting=(Line(1, 0, TEXT),))
    await run(work, Ledger())
    assert (work.status, work.results) == ("failed", {})


async def test_a_batch_that_nobody_can_read_any_more_ends() -> None:
    work = Work(waiting=(Line(1, 0, TEXT),))
    work.readable = False
    await run(work, Ledger())
    assert work.status == "failed"


async def test_when_its_time_is_over_the_lines_that_are_left_say_so() -> None:
    work = Work(waiting=tuple(Line(number, 0, TEXT) for number in range(1, 12)))
    work.is_over = True
    await run(work, Ledger())
    assert work.status == "expired"
    assert sorted(work.results) == list(range(1, 12))
    assert {result["error"]["code"] for result, _ in work.results.values()} == {"batch_expired"}


async def test_a_cancelled_batch_ends_as_such_even_with_lines_left() -> None:
    work = Work(waiting=(Line(1, 0, TEXT),))
    work.status = "cancelling"
    await run(work, Ledger())
    assert (work.status, work.results) == ("cancelled", {})
