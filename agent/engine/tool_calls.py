"""Reads tool calls out of an answer while it is written."""

from __future__ import annotations

import json
import re
import secrets
from typing import NamedTuple

from agent.engine.job import CallHead, Tool
from agent.engine.stops import overlap
from agent.engine.tool_forms import Call, ToolForm

# The name comes first, so that the arguments can be passed on as they come.
_JSON_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_-]{1,64})"\s*,\s*"arguments"\s*:\s*(?=\{)')


class CallPiece(NamedTuple):
    """Some more of the call number ``call``; its first piece has the ``head``. ``text`` continues its arguments."""

    call: int
    head: CallHead | None
    text: str


class ToolCallSplitter:
    """Splits one answer into text and calls, however the tags are cut across pieces.

    What stands between the tags and is no call of a known tool stays text. White space around calls is dropped.
    """

    def __init__(self, form: ToolForm, tools: tuple[Tool, ...]) -> None:
        self._form = form
        self._tools = tools
        self._names = {tool.name for tool in tools}
        self._held = ""
        self._read = self._read_text
        self._arguments = _JsonEnd()
        self._after_call = False
        self.begun = 0
        self.completed = 0

    def feed(self, text: str) -> list[str | CallPiece]:
        """What is certain after some more of the answer. No text in it is empty; a call's piece may be."""
        said: list[str | CallPiece] = []
        self._held += text
        while self._read(said):
            pass
        return said

    def flush(self) -> list[str | CallPiece]:
        """What was held back, at the end of the answer."""
        said: list[str | CallPiece] = []
        if self._read == self._read_call:
            self._say_calls(self._held, "", said)
        elif self._read == self._read_text:
            self._say_text(self._held, said)
        self._held = ""
        return said

    # Each reader takes what it can of the held text and says whether another one can go on.

    def _read_text(self, said: list[str | CallPiece]) -> bool:
        text, begun, rest = self._held.partition(self._form.start)
        if begun:
            self._say_text(text.rstrip(), said)
            self._held, self._read = rest, self._read_call
            return True
        # White space may stand before a call, so it waits for what follows.
        certain = len(text) - overlap(text, self._form.start)
        certain = len(text[:certain].rstrip())
        self._say_text(text[:certain], said)
        self._held = text[certain:]
        return False

    def _read_call(self, said: list[str | CallPiece]) -> bool:
        head = _JSON_HEAD.match(self._held) if self._form.is_json else None
        if head is not None and head[1] in self._names:
            said.append(self._begin(head[1]))
            self._held, self._read, self._arguments = self._held[head.end() :], self._read_arguments, _JsonEnd()
            return True
        if not self._form.end or self._form.end not in self._held:
            return False
        call, _, rest = self._held.partition(self._form.end)
        self._say_calls(call, self._form.end, said)
        self._held, self._read = rest, self._read_text
        return True

    def _read_arguments(self, said: list[str | CallPiece]) -> bool:
        size, ended = self._arguments.find(self._held)
        if size:
            said.append(CallPiece(self.begun - 1, None, self._held[:size]))
        self._held = self._held[size:]
        if ended:
            self.completed += 1
            self._read = self._read_end
        return ended

    def _read_end(self, said: list[str | CallPiece]) -> bool:
        _, ended, rest = self._held.partition(self._form.end)
        if ended:
            self._held, self._read = rest, self._read_text
            return True
        kept = overlap(self._held, self._form.end)
        self._held = self._held[len(self._held) - kept :]
        return False

    def _say_text(self, text: str, said: list[str | CallPiece]) -> None:
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            said.append(text)

    def _say_calls(self, text: str, end: str, said: list[str | CallPiece]) -> None:
        calls = self._parsed(text)
        if not calls:
            self._say_text(f"{self._form.start}{text}{end}", said)
        for name, arguments in calls:
            said.append(self._begin(name))
            said.append(CallPiece(self.begun - 1, None, json.dumps(arguments, ensure_ascii=False)))
            self.completed += 1

    def _parsed(self, text: str) -> list[Call]:
        try:
            calls = self._form.parse(text, self._tools)
            known = all(name in self._names and isinstance(arguments, dict) for name, arguments in calls)
        except Exception:  # noqa: BLE001 - the parsers of models' own forms fail in every way on what is no call
            return []
        return calls if known else []

    def _begin(self, name: str) -> CallPiece:
        self.begun += 1
        self._after_call = True
        return CallPiece(self.begun - 1, CallHead(f"call_{secrets.token_hex(12)}", name), "")


class _JsonEnd:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def find(self, piece: str) -> tuple[int, bool]:
        """How many characters of the piece belong to the object, and whether it ends with them."""
        for place, character in enumerate(piece):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = character == "\\"
                self._in_text = character != '"'
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1, True
        return len(piece), False
