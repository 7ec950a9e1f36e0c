"""The way to machines on other gateways' sockets: one authenticated internal HTTP stream a job.

Each stream has its own flow control, so an answer that is read slowly holds up no other. Source: provider protocol,
sections 7 and 8.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any
from uuid import UUID

import httpx
import msgspec
from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.pool import AsyncConnection, connection_of
from domain import protocol
from domain.dispatch import SECRET_HEADER
from domain.errors import DarkbloomError
from domain.protocol import COORDINATOR_INBOUND_BYTES_MAX, InferenceRequest
from domain.relay import JOB_PATH, JOBS_PATH, SILENCE_SECONDS_MAX, VIOLATIONS_PATH, JobFrame, Violation
from domain.routing import Snapshot

GONE = 410
"""The one refusal that concerns a machine and not its gateway."""

CONNECT_SECONDS = 2.0
HANDOVER_SECONDS_MAX = 5.0
"""A gateway that takes longer to hand a machine its request is out of reach, whatever the network says."""

WRITE_SECONDS = 10.0
STREAMS_MAX = 2_000
IDLE_CONNECTIONS_MAX = 100
KNOWN_GATEWAYS_MAX = 1_000

OUT_OF_REACH_SECONDS = 10.0
"""For so long, requests pass over the machines of a gateway that did not answer."""

_frame = msgspec.json.Decoder(JobFrame)


class RelayedAnswer:
    """The frames of one job. Leaving the context early tells the other gateway to stop the machine."""

    def __init__(self, response: httpx.Response, on_broken: Callable[[], None]) -> None:
        self._response = response
        self._on_broken = on_broken

    async def __aenter__(self) -> RelayedAnswer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._response.aclose()

    async def frames(self) -> AsyncGenerator[JobFrame, None]:
        """Raises ConnectionError when the other gateway is gone, or says what no gateway says."""
        started: list[bytes] = []
        size = 0
        try:
            async for part in self._response.aiter_raw():
                *ended, rest = part.split(b"\n")
                for line in ended:
                    frame = b"".join((*started, line))
                    started, size = [], 0
                    if frame:
                        yield _frame.decode(frame)
                if rest:
                    started.append(rest)
                    size += len(rest)
                if size > COORDINATOR_INBOUND_BYTES_MAX:
                    raise ConnectionError("a relayed frame is too large")
        except (httpx.HTTPError, httpx.StreamError) as error:
            self._on_broken()
            raise ConnectionError(type(error).__name__) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ConnectionError("a relayed frame cannot be read") from None


class GatewayRelay:
    """Finds the other gateway by the address in the row of its lease, which never changes under one id.

    ``transport`` is what carries the requests; None for the network.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        secret: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._pool = pool
        self._urls: dict[str, str] = {}
        self._out_of_reach: dict[str, float] = {}
        """Until when (Unix seconds) each is passed over."""
        self._client = httpx.AsyncClient(
            headers={SECRET_HEADER: secret},
            timeout=httpx.Timeout(SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS, write=WRITE_SECONDS, pool=1.0),
            limits=httpx.Limits(max_connections=STREAMS_MAX, max_keepalive_connections=IDLE_CONNECTIONS_MAX),
            trust_env=False,
            transport=transport,
        )

    async def close(self) -> None:
        await self._client.aclose()

    def unreachable(self) -> dict[str, float]:
        """Gateways that were just found out of reach, and until when (Unix seconds) they are passed over."""
        now = time.time()
        self._out_of_reach = {gateway: until for gateway, until in self._out_of_reach.items() if until > now}
        return dict(self._out_of_reach)

    async def start(self, machine: Snapshot, request: InferenceRequest) -> RelayedAnswer:
        """Returns when the machine's own gateway has handed it the request. Raises ConnectionError when it did not."""
        url = await self._url_of(machine) + JOBS_PATH.format(session_id=machine.session_id)
        asking = self._client.build_request("POST", url, content=protocol.encode(request).encode())
        try:
            async with asyncio.timeout(HANDOVER_SECONDS_MAX):
                response = await self._send(machine, asking, stream=True)
        except TimeoutError:
            self._note_broken(machine)
            raise ConnectionError("the machine's gateway does not answer") from None
        return RelayedAnswer(response, lambda: self._note_broken(machine))

    async def cancel(self, machine: Snapshot, job_id: str) -> None:
        """Raises ConnectionError when the job is not known there any more."""
        url = await self._url_of(machine) + JOB_PATH.format(session_id=machine.session_id, job_id=job_id)
        await self._send(machine, self._client.build_request("DELETE", url))

    async def violated(self, machine: Snapshot, what: str) -> None:
        """Raises ConnectionError when the machine is not there any more."""
        url = await self._url_of(machine) + VIOLATIONS_PATH.format(session_id=machine.session_id)
        telling = self._client.build_request("POST", url, content=msgspec.json.encode(Violation(what)))
        await self._send(machine, telling)

    def _note_broken(self, machine: Snapshot) -> None:
        self._out_of_reach[machine.gateway_id] = time.time() + OUT_OF_REACH_SECONDS

    async def _send(self, machine: Snapshot, asking: httpx.Request, **how: Any) -> httpx.Response:
        try:
            response = await self._client.send(asking, **how)
        except httpx.HTTPError as error:
            self._note_broken(machine)
            raise ConnectionError(type(error).__name__) from None
        if response.status_code not in (200, 204):
            await response.aclose()
            if response.status_code != GONE:
                self._note_broken(machine)
            raise ConnectionError(f"the machine's gateway answered {response.status_code}")
        return response

    async def _url_of(self, machine: Snapshot) -> str:
        known = self._urls.get(machine.gateway_id)
        if known is not None:
            return known
        try:
            async with connection_of(self._pool) as connection:
                cursor = await connection.execute(sql.GATEWAY_URL, (UUID(machine.gateway_id),))
                row = await cursor.fetchone()
        except DarkbloomError as error:
            raise ConnectionError(type(error).__name__) from None
        if row is None or not row[0]:
            raise ConnectionError("the machine's gateway has no address")
        if len(self._urls) >= KNOWN_GATEWAYS_MAX:
            self._urls.clear()
        self._urls[machine.gateway_id] = row[0]
        return str(row[0])
