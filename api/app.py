"""The HTTP application: its routers and its outer layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from api import errors, health, internal
from api.auditors.routes import ROUTERS as AUDITORS
from api.consumer import chat, completions, generations, keys, messages, models, payments, pricing, responses
from api.edge import Edge
from api.openapi import routes as openapi
from api.operators import dead_letters
from api.providers import socket, standing
from api.public import transparency
from api.relay import endpoints as relay

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_app(lifespan: Lifespan, *, development: bool, origins: Sequence[str]) -> FastAPI:
    app = FastAPI(title="Darkbloom", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    dialects = (chat, responses, completions, messages)
    consumers = (*dialects, models, pricing, keys, payments, generations)
    parts = (*consumers, transparency, standing, health, openapi, internal, relay, dead_letters, socket)
    for router in (*(part.router for part in parts), *AUDITORS):
        app.include_router(router)

    def count_wrong_credential(address: str) -> None:
        app.state.coordinator.rate_limits.count_wrong_credential(address)

    def leaving() -> bool:
        return bool(app.state.coordinator.state != "ready")

    errors.install(app, count_wrong_credential)
    app.add_middleware(Edge, development=development, origins=origins, leaving=leaving)
    return app
