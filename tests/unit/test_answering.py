from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from starlette.types import Message

from api.consumer.answering import AnswerResponse
from api.consumer.attempt import Started
from api.consumer.idempotency import Recording
from tests.support.examples import snapshot

BEAT = b": keep-alive\n\n"


class Quiet:
    """An inference that begins when it is told to, and then says nothing until it is told to end."""

    request_ids = (uuid4(),)
    tokens_used = 0

    def __init__(self) -> None:
        self.begin, self.end = asyncio.Event(), asyncio.Event()

    async def events(self) -> AsyncGenerator[Started, None]:
        await self.begin.wait()
        yield Started(snapshot(), "job", {})
        await self.end.wait()

    def consumer_gone(self) -> None:
        self.end.set()


async def test_a_silence_is_filled_with_comments_once_the_answer_has_begun_and_not_before() -> None:
    inference = Quiet()
    sent: asyncio.Queue[Message] = asyncio.Queue()
    coordinator: Any = SimpleNamespace(keep_alive_seconds=0.01, switchboard=SimpleNamespace(close=lambda _: None))
    renderer = SimpleNamespace(keep_alive=BEAT, start=lambda _: b"data: first\n\n")
    call: Any = SimpleNamespace(streamed=renderer)
    response = AnswerResponse(inference, call, coordinator, Recording(None), lambda _: None)  # type: ignore[arg-type]

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nothing more is received")

    serving = asyncio.create_task(response({"type": "http", "path": "/"}, receive, sent.put))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sent.get(), 0.15)  # no status and no comment before the first content
    inference.begin.set()
    start, first, beat, again = [await asyncio.wait_for(sent.get(), 20) for _ in range(4)]
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert first["body"] == b"data: first\n\n"
    assert beat["body"] == again["body"] == BEAT
    assert beat["more_body"] is True
    inference.end.set()
    await serving
