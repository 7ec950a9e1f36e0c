"""The short way for a machine's frames says what the protocol library says, however the bytes are cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Close, Frame, Opcode

from api.frames import AT_ONCE, ShortWayProtocol

SIZE_MAX = 70_000
HANDSHAKE = (
    b"GET /ws/provider HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Line(asyncio.Transport):
    """What the server wrote, and whether it closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


def heard(
    kind: type[WebSocketsSansIOProtocol], pieces: list[bytes], take_at_once: Callable[[str], bool] | None = None
) -> tuple[list[Any], bytes, bool]:
    """What an application gets of these pieces up to its end, what goes back, and whether the connection was closed."""

    async def run() -> tuple[list[Any], bytes, bool]:
        config = Config(_app, ws_max_size=SIZE_MAX, ws_per_message_deflate=False, log_config=None, lifespan="off")
        config.load()
        protocol, line = kind(config, ServerState(), {}, asyncio.get_running_loop()), Line()
        protocol.connection_made(line)
        protocol.data_received(HANDSHAKE)
        await asyncio.sleep(0)  # the application accepts
        handshake = len(line.written)
        if take_at_once is not None:
            protocol.scope["extensions"][AT_ONCE]["lend"](take_at_once)  # type: ignore[typeddict-item]
        for piece in pieces:
            protocol.data_received(piece)
        messages = []
        while not protocol.queue.empty():
            messages.append(protocol.queue.get_nowait())
            if messages[-1]["type"] == "websocket.disconnect":
                break
        for task in protocol.tasks:
            task.cancel()
        if protocol.close_timer is not None:
            protocol.close_timer.cancel()
        await asyncio.gather(*protocol.tasks, return_exceptions=True)
        return messages, line.written[handshake:], line.closed

    return asyncio.run(run())


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def text(length: int) -> bytes:
    return frame(Opcode.TEXT, b"x" * length)


def fragments(*parts: bytes) -> bytes:
    first, *rest = parts
    last = len(rest) - 1
    following = [frame(Opcode.CONT, part, fin=number == last) for number, part in enumerate(rest)]
    return b"".join([frame(Opcode.TEXT, first, fin=not rest), *following])


FRAMES = st.one_of(
    st.text(max_size=20).map(lambda said: frame(Opcode.TEXT, said.encode())),
    st.sampled_from([125, 126, 127, 65_535, 65_536]).map(text),
    st.binary(max_size=20).map(lambda data: frame(Opcode.BINARY, data)),
    st.binary(max_size=20).map(lambda data: frame(Opcode.PING, data)),
    st.lists(st.sampled_from([b"", b"a", b"bc"]), min_size=2, max_size=4).map(lambda parts: fragments(*parts)),
)


@given(frames=st.lists(FRAMES, max_size=6), cuts=st.lists(st.integers(1, 400), max_size=20))
def test_the_same_messages_arrive_wherever_the_bytes_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream, pieces = b"".join(frames), []
    for cut in cuts:
        pieces.append(stream[:cut])
        stream = stream[cut:]
    pieces.append(stream)

    assert heard(ShortWayProtocol, pieces) == heard(WebSocketsSansIOProtocol, pieces)


@given(frames=st.lists(FRAMES, max_size=6))
def test_a_handler_that_takes_nothing_at_once_changes_nothing(frames: list[bytes]) -> None:
    stream = [b"".join(frames)]
    assert heard(ShortWayProtocol, stream, lambda _: False) == heard(WebSocketsSansIOProtocol, stream)


def test_what_is_taken_at_once_does_not_arrive_and_the_rest_does_in_order() -> None:
    taken = []

    def take(said: str) -> bool:
        taken.append(said)
        return said.startswith("beat")

    said = [frame(Opcode.TEXT, text) for text in (b"one", b"beat 1", b"two", b"beat 2")]
    messages, _, _ = heard(ShortWayProtocol, [b"".join(said), fragments(b"be", b"at 3")], take)

    assert [message["text"] for message in messages if "text" in message] == ["one", "two", "beat 3"]
    assert taken == ["one", "beat 1", "two", "beat 2"]


def test_a_text_that_is_not_utf_8_is_offered_to_nobody_and_ends_the_connection() -> None:
    taken: list[str] = []
    bad = [frame(Opcode.TEXT, b'{"a":"\xff"}') + text(3)]
    assert heard(ShortWayProtocol, bad, lambda said: bool(taken.append(said))) == heard(WebSocketsSansIOProtocol, bad)
    assert taken == []


@pytest.mark.parametrize(
    "bad",
    [
        Frame(Opcode.TEXT, b"not masked").serialize(mask=False),
        text(SIZE_MAX + 1),
        fragments(b"x" * (SIZE_MAX - 1), b"xx"),
        frame(Opcode.TEXT, b"\xff\xfe"),
        bytes([0x81 | 0x40]) + text(3)[1:],
        frame(Opcode.CONT, b"of nothing"),
        frame(Opcode.TEXT, b"half", fin=False) + text(3),
        frame(Opcode.CLOSE, Close(1000, "done").serialize()) + text(3),
    ],
    ids=["not masked", "too long", "too long in all", "not UTF-8", "a reserved bit", "nothing to go on with",
         "a message inside of another", "text after the close"],
)  # fmt: skip
def test_what_breaks_the_protocol_ends_as_the_library_ends_it(bad: bytes) -> None:
    pieces = [text(3), bad[:5], bad[5:], text(4)]

    assert heard(ShortWayProtocol, pieces) == heard(WebSocketsSansIOProtocol, pieces)
