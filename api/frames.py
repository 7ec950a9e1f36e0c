"""The server's side of a WebSocket, with a short way for the frames that nearly all of a machine's are.

A machine sends each token as a whole masked text frame. Reading one through the generators of a protocol library takes
longer than opening its seal. So frames are cut apart here, plain ones are handed on at once, and every other one
(control frames, fragments, what breaks the protocol) goes to the library, which decides as ever. Source: RFC 6455,
section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.utils import apply_mask

WHOLE_TEXT = 0x80 | Opcode.TEXT
MASKED, LENGTH = 0x80, 0x7F
TWO_BYTES, EIGHT_BYTES = 126, 127
MASK_BYTES = 4
SWITCHING_PROTOCOLS = 101

AT_ONCE = "darkbloom.at_once"
"""The extension of the ASGI scope by which a handler takes frames without a task being woken for each."""


class ShortWayProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket. The library gets whole frames only, so its state never stands inside of one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received = bytearray()
        self._length = 0
        self._in_fragments = False
        self._is_over = False
        self._take_at_once: Callable[[str], bool] | None = None

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == SWITCHING_PROTOCOLS:
            self.scope["extensions"][AT_ONCE] = {"lend": self._lend}

    def _lend(self, take_at_once: Callable[[str], bool]) -> None:
        """Offer each plain text to a function first. What it takes, by answering True, never comes to ``receive``."""
        self._take_at_once = take_at_once

    def data_received(self, data: bytes) -> None:
        if self._is_over or not self.handshake_initiated:
            super().data_received(data)
            return
        self._received += data
        at, there = 0, len(self._received)
        while at < there and not self._is_over and (end := self._end_of_frame(at)):
            if self._received[at] == WHOLE_TEXT and not self._in_fragments:
                mask_at = end - self._length - MASK_BYTES
                mask = bytes(self._received[mask_at : mask_at + MASK_BYTES])
                text = apply_mask(self._received[mask_at + MASK_BYTES : end], mask)
                if not self._was_taken_at_once(text):
                    self.handle_text(Frame(Opcode.TEXT, text))
            else:
                self._let_the_library(at, end)
            at = end
        del self._received[:at]
        if self._is_over and self._received:
            super().data_received(bytes(self._received))
            self._received.clear()

    def _was_taken_at_once(self, text: bytes) -> bool:
        if self._take_at_once is None or self.close_sent:
            return False
        try:
            return self._take_at_once(text.decode())
        except UnicodeDecodeError:
            return False  # which ends the connection the long way

    def _end_of_frame(self, at: int) -> int:
        """Where the frame that begins there ends, 0 while it is not all here. ``_length`` is that of its payload."""
        received = self._received
        there = len(received) - at
        if there < 2:
            return 0
        size = received[at + 1]
        if not size & MASKED:
            self._is_over = True  # a client that does not mask; the library says so
            return 0
        length, head = size & LENGTH, 2
        if length >= TWO_BYTES:
            head = 4 if length == TWO_BYTES else 10
            if there < head:
                return 0
            length = int.from_bytes(received[at + 2 : at + head], "big")
            if length > self.config.ws_max_size:
                self._is_over = True
                return 0
        self._length = length
        end = at + head + MASK_BYTES + length
        return end if end <= len(received) else 0

    def _let_the_library(self, at: int, end: int) -> None:
        opcode = self._received[at] & 0x0F
        if opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._in_fragments = not self._received[at] & 0x80
        self._is_over = opcode == Opcode.CLOSE
        super().data_received(bytes(self._received[at:end]))
        self._is_over = self._is_over or self.conn.parser_exc is not None
