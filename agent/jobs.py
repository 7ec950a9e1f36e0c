"""One inference request, from its frame to its last frame (provider protocol, sections 3, 5, 6 and 12.2)."""

from __future__ import annotations

import hashlib
import logging
import time

from adapters.crypto.box import SealedChannel, SealingError
from agent.dialects import chat_request
from agent.dialects.chat_answer import Answer, StreamedAnswer, WholeAnswer
from agent.engine.generation import Generation
from agent.engine.job import ChoiceEnd, Finished, Piece
from agent.errors import EngineFailed, JobError, JobRefused
from agent.log import describe
from agent.machine import Machine
from agent.outbox import Outbox
from domain import protocol

_log = logging.getLogger(__name__)

# A frame wraps its ciphertext in base64, which makes 4 bytes of 3, and in some hundred bytes of JSON.
_CHUNK_BYTES_MAX = protocol.COORDINATOR_INBOUND_BYTES_MAX * 3 // 4 - 4096


class Job:
    """Runs one request and writes its frames to the outbox.

    Plaintext is kept in as few places as Python allows: the transcript that the response hash needs is overwritten at
    the end, on every path; texts and immutable bytes are dropped and left to the collector.
    """

    def __init__(self, request: protocol.InferenceRequest, machine: Machine, outbox: Outbox) -> None:
        self.id = request.request_id
        self._encrypted_body = request.encrypted_body
        self._machine = machine
        self._outbox = outbox
        self._generation: Generation | None = None
        self._transcript = bytearray()
        self._delivered: dict[int, Piece] = {}
        self._cancelled = False

    async def run(self) -> bool:
        """Run to the end; True when an answer was completed. Raises nothing but cancellation."""
        try:
            return await self._run()
        except JobError as error:
            await self._fail(error)
        except Exception as error:  # noqa: BLE001 - one job's failure is its own
            _log.error("a job failed: %s", describe(error))
            await self._fail(EngineFailed())
        finally:
            if self._generation is not None:
                self._generation.cancel()
            _wipe(self._transcript)
        return False

    def cancel(self) -> None:
        """The coordinator wants no more: stop at the next token, and report what was delivered, if anything was."""
        self._cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    async def _run(self) -> bool:
        channel, request = self._open()
        slot = self._machine.slot(request.model)
        if self._cancelled:
            return False
        generation = self._generation = slot.engine.submit(request.job)
        self._outbox.control(protocol.InferenceAccepted(self.id))
        self._machine.active_model = request.model
        kind = StreamedAnswer if request.stream else WholeAnswer
        answer: Answer = kind(self.id, request.model, int(time.time()))
        async for event in generation:
            if isinstance(event, Piece):
                for text in answer.piece(event):
                    await self._send(channel, text)
                    self._delivered[event.choice] = event
            elif isinstance(event, ChoiceEnd):
                for text in answer.end(event):
                    await self._send(channel, text)
            elif event.cancelled:
                return await self._complete_cancelled(event)
            else:
                for text in answer.finish(event):
                    await self._send(channel, text)
                if request.stream:
                    await self._seal(channel, protocol.STREAM_END)
                await self._complete(_usage(event, event.completion_tokens, event.reasoning_tokens))
        return True

    def _open(self) -> tuple[SealedChannel, chat_request.ChatRequest]:
        sealed = self._encrypted_body
        if sealed is None:
            raise JobRefused("the request is not encrypted")
        try:
            channel = self._machine.identity.channel(sealed.ephemeral_public_key)
            body = channel.open(sealed.ciphertext)
        except SealingError:
            raise JobRefused("the request cannot be decrypted") from None
        self._encrypted_body = None
        return channel, chat_request.parse(body)

    async def _send(self, channel: SealedChannel, text: bytes) -> None:
        if len(text) > _CHUNK_BYTES_MAX:
            raise EngineFailed("the answer is too large for one frame")
        self._transcript += text
        await self._seal(channel, text)

    async def _seal(self, channel: SealedChannel, text: bytes) -> None:
        sealed = protocol.Sealed(self._machine.identity.box_public, channel.seal(text))
        await self._outbox.bulk(protocol.InferenceResponseChunk(self.id, sealed))

    async def _complete_cancelled(self, finished: Finished) -> bool:
        # Nothing was delivered, so nothing is charged and nobody waits for a report.
        if not self._transcript:
            return False
        delivered = self._delivered.values()
        completion_tokens = sum(piece.completion_tokens for piece in delivered)
        reasoning_tokens = sum(piece.reasoning_tokens for piece in delivered)
        await self._complete(_usage(finished, completion_tokens, reasoning_tokens))
        return True

    async def _complete(self, usage: protocol.Usage) -> None:
        digest = hashlib.sha256(protocol.response_hash_input(self.id, usage.completion_tokens))
        digest.update(self._transcript)
        response_hash = digest.hexdigest()
        signature = self._machine.identity.sign(response_hash.encode())
        # Counted before it is sent, so that no report of the counters can miss a request that was completed.
        self._machine.count(usage)
        await self._outbox.bulk(protocol.InferenceComplete(self.id, usage, response_hash, signature))

    async def _fail(self, error: JobError) -> None:
        if self._cancelled:
            return
        await self._outbox.bulk(protocol.InferenceError(self.id, str(error), error.status_code))


def _usage(finished: Finished, completion_tokens: int, reasoning_tokens: int) -> protocol.Usage:
    return protocol.Usage(finished.prompt_tokens, completion_tokens, finished.cached_tokens, reasoning_tokens)


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))
    buffer.clear()
