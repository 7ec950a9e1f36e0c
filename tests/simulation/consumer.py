"""Consumers: they ask, read fast or slowly, lose patience, and remember what they were told."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import msgspec
from starlette.requests import Request

from api.consumer.chat import create_chat_completion
from domain.errors import DarkbloomError
from tests.simulation.gateway import SimulatedGateway, opened

if TYPE_CHECKING:
    from tests.simulation.market import Market


PATIENT_SECONDS = 1_000.0
"""Longer than any request may take."""


class Wish(NamedTuple):
    """What is asked, and how. ``patience`` is when the consumer hangs up, ``reading`` how long each write takes it,
    ``route`` what it says about machines of its own."""

    name: str
    key: str
    model: str
    stream: bool
    prompt_characters: int
    output_tokens: int
    patience: float
    reading: float
    route: str = ""


class Told(NamedTuple):
    """What became of a wish, as its consumer sees it. ``status`` is 0 when no answer began; ``whole`` says that the
    answer came to its end, and ``error`` is the type of what was told instead."""

    wish: Wish
    request_id: UUID | None
    status: int
    whole: bool
    error: str


class _Ears:
    """A consumer's end of an HTTP connection."""

    def __init__(self, wish: Wish, body: bytes) -> None:
        self.status = 0
        self.received = b""
        self.ended = False
        self.hung_up = asyncio.Event()
        self._wish = wish
        self._asked = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> dict[str, Any]:
        if self._asked:
            return self._asked.pop()
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self._wish.reading:
            await asyncio.sleep(self._wish.reading)
        if self.hung_up.is_set():
            return  # as uvicorn does, whose writes to a closed connection vanish
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.received += message.get("body", b"")
            self.ended = not message.get("more_body", False)

    @property
    def error(self) -> str:
        at = self.received.rfind(b'"error"')
        if at < 0:
            return ""
        text = self.received[self.received.find(b"{", at) :]
        return str(msgspec.json.decode(_first_object(text)).get("type"))


def _first_object(text: bytes) -> bytes:
    return text[: text.find(b"}") + 1]


async def ask(market: Market, gateway: SimulatedGateway, wish: Wish) -> Told:
    """Ask once, and wait for what comes."""
    body = {
        "model": wish.model,
        "messages": [{"role": "user", "content": "x" * wish.prompt_characters}],
        "max_tokens": wish.output_tokens,
        "stream": wish.stream,
    }
    ears = _Ears(wish, msgspec.json.encode(body))
    mine: list[UUID] = []
    refused: list[str] = []
    serving = copy_context().run(_serve, gateway, wish, ears, mine, refused)
    await asyncio.wait([serving], timeout=wish.patience)
    if not serving.done():
        market.trace(wish.name, "hangs up")
        ears.hung_up.set()
        await asyncio.wait([serving])
    if not serving.cancelled() and serving.exception() is not None:
        raise serving.exception()  # type: ignore[misc]
    error = refused[0] if refused else ears.error
    whole = ears.ended and ears.status == 200 and not error
    told = Told(wish, mine[0] if mine else None, ears.status, whole, error)
    market.trace(
        wish.name, f"is told {told.status} {told.error or ('all' if whole else 'a part')} of {told.request_id}"
    )
    return told


def _serve(
    gateway: SimulatedGateway, wish: Wish, ears: _Ears, mine: list[UUID], refused: list[str]
) -> asyncio.Task[None]:
    async def serve() -> None:
        route = [(b"x-darkbloom-route", wish.route.encode())] if wish.route else []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {wish.key}".encode()), *route],
            "app": gateway.app,
        }
        try:
            response = await create_chat_completion(Request(scope, ears.receive))
        except DarkbloomError as error:
            refused.append(error.type)
            ears.status = error.http_status
            return
        await response(scope, ears.receive, ears.send)

    opened.set(mine)
    return gateway.process.start(serve())


def wish_of(
    chance: Random, name: str, key: str, models: list[str], *, calm: bool, routes: tuple[str, ...] = ("",)
) -> Wish:
    """Something that somebody might want."""
    patience, reading = PATIENT_SECONDS, 0.0
    if not calm or chance.random() < 0.3:
        if chance.random() < 0.12:
            patience = chance.uniform(0.05, 6.0)
        elif chance.random() < 0.06:
            reading = chance.choice((0.3, 2.0, 40.0))
    return Wish(
        name=name,
        key=key,
        model=chance.choice(models),
        stream=chance.random() < 0.6,
        prompt_characters=int(10 ** chance.uniform(0.5, 3.3)),
        output_tokens=int(10 ** chance.uniform(0.7, 2.5)),
        patience=patience,
        reading=reading,
        route=chance.choice(routes),
    )
