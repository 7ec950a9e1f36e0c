"""GET /ws/provider: where machines connect."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from api.coordinator import Coordinator
from api.frames import AT_ONCE
from api.providers.registration import identify
from api.providers.session import ProviderSession
from domain import protocol
from domain.errors import DarkbloomError
from domain.protocol import Register

log = logging.getLogger(__name__)

router = APIRouter()

REGISTER_SECONDS_MAX = 30.0


@router.websocket("/ws/provider")
async def provider_socket(socket: WebSocket) -> None:
    coordinator: Coordinator = socket.app.state.coordinator
    await socket.accept()
    if coordinator.draining:
        await socket.close(1012, "this gateway is stopping; connect again")
        return
    try:
        async with asyncio.timeout(REGISTER_SECONDS_MAX):
            register = await _first_message(socket)
    except TimeoutError:
        await socket.close(1008, "no registration was sent")
        return
    except (WebSocketDisconnect, KeyError):
        return
    try:
        identity = identify(register, coordinator.sealing, datetime.now(UTC))
        account_id = await coordinator.credentials.find_provider_token(register.auth_token)
        if register.auth_token and account_id is None:
            log.warning("a machine sent an unknown provider token and stays unlinked")
        session = ProviderSession(socket, register, identity, account_id or "", coordinator.surroundings)
        if AT_ONCE in socket.scope["extensions"]:
            socket.scope["extensions"][AT_ONCE]["lend"](session.take_at_once)
        await session.run()
    except DarkbloomError as error:
        log.warning("a machine could not be registered: %s", type(error).__name__)
        await socket.close(1013, "the coordinator cannot register machines just now; connect again")


async def _first_message(socket: WebSocket) -> Register:
    """The registration; whatever comes before it is dropped."""
    while True:
        frame = await socket.receive_text()
        try:
            message = protocol.decode_from_provider(frame)
        except protocol.MalformedMessage as problem:
            log.info("a frame before registration was dropped: %s", problem)
            continue
        if isinstance(message, Register):
            return message
