"""One attempt with a machine whose frames come in bursts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from nacl.public import PrivateKey

from adapters.crypto import box
from adapters.crypto.sealing import NaclSealing
from api.consumer.answers import read_chunk
from api.consumer.attempt import CHUNKS_AT_ONCE_MAX, Attempt, AttemptFailed, Delta, Started
from api.consumer.expected import Expected
from api.inbox import Inbox
from domain.dispatch import Assigned
from domain.protocol import (
    STREAM_END,
    Cancel,
    InferenceAccepted,
    InferenceComplete,
    InferenceRequest,
    InferenceResponseChunk,
    Sealed,
    Usage,
)
from tests.support.ledger_machines import job, machine

JOB = "7d1c2b1e-0000-4000-8000-000000000001"


class Bursting:
    """A machine that has said everything before the gateway reads on. ``says`` are texts of chunks; one that is None
    is not sealed."""

    def __init__(self, inbox: Inbox, says: list[bytes | None]) -> None:
        self.secret = PrivateKey.generate()
        self.key = box.public_key_text(self.secret)
        self.violations: list[str] = []
        self._inbox = inbox
        self._says = says

    def open_job(self, job_id: str, inbox: Inbox) -> None: ...

    def close_job(self, job_id: str) -> None: ...

    async def send(self, message: InferenceRequest | Cancel) -> None:
        assert isinstance(message, InferenceRequest)
        assert message.encrypted_body is not None
        channel = box.SealedChannel(self.secret, box.parse_public_key(message.encrypted_body.ephemeral_public_key))
        self._inbox.put(InferenceAccepted(JOB))
        for text in self._says:
            sealed = None if text is None else Sealed(self.key, channel.seal(text))
            self._inbox.put(InferenceResponseChunk(JOB, sealed))
        self._inbox.put(InferenceComplete(JOB, Usage(1, len(self._says))))

    async def violated(self, what: str) -> None:
        self.violations.append(what)


def word(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}' % msgspec.json.encode(text)


async def events_of(says: list[bytes | None]) -> tuple[list[Any], Bursting]:
    """What an attempt yields; how it failed comes last."""
    inbox = Inbox()
    link = Bursting(inbox, says)
    wanted = job()
    attempt = Attempt(
        Assigned(
            request_id=wanted.request_id,
            attempt=1,
            job_id=JOB,
            machine=msgspec.structs.replace(machine(), provider_key=link.key),
        ),
        link,
        sealing=NaclSealing(),
        next_item=lambda seconds, _: inbox.get(seconds),
        ready_output=inbox.ready_output,
        read_text=read_chunk,
        expected=Expected(stream=True),
        first_signal_seconds=10.0,
        first_content_seconds=10.0,
        chunk_gap_seconds=10.0,
        timing_us={},
    )
    events: list[Any] = []
    try:
        async for event in attempt.run(b"{}"):
            events.append(event)  # noqa: PERF401  # what came before a failure counts
    except AttemptFailed as failed:
        events.append(failed.reason)
    return events, link


def words_in(event: Delta) -> list[str | None]:
    return [choice.delta.content for choice in event.chunk.choices]


async def test_chunks_that_are_here_together_go_out_together_each_as_it_was() -> None:
    events, _ = await events_of([word("one"), word(" two"), word(" three"), STREAM_END])

    started, together, rest, complete = events
    assert isinstance(started, Started)
    assert words_in(together) == ["one", " two", " three"]
    assert words_in(rest) == []
    assert isinstance(complete, InferenceComplete)


async def test_a_long_burst_goes_out_in_parts() -> None:
    events, _ = await events_of([word("x")] * (CHUNKS_AT_ONCE_MAX + 1))

    assert [len(words_in(event)) for event in events if isinstance(event, Delta)] == [CHUNKS_AT_ONCE_MAX, 1, 0]


@pytest.mark.parametrize(("bad", "reason"), [(None, "bad_encryption"), (b"data: no", "bad_answer")])
async def test_what_came_before_a_bad_chunk_is_delivered_before_the_attempt_fails(
    bad: bytes | None, reason: str
) -> None:
    events, link = await events_of([word("good"), word(" too"), bad, word("never")])

    started, together, failed = events
    assert isinstance(started, Started)
    assert words_in(together) == ["good", " too"]
    assert failed == reason
    assert len(link.violations) == 1
