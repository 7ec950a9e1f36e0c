"""The HTTP application: its routers and its outer layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from api import errors, health, internal
from api.auditors.routes import ROUTERS as AUDITORS
from api.consumer import chat, models, payments
from api.edge import Edge
from api.providers import socket, standing
from api.public import transparency

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_app(lifespan: Lifespan, *, development: bool, origins: Sequence[str]) -> FastAPI:
    app = FastAPI(title="Darkbloom", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for router in (
        chat.router,
        models.router,
        payments.router,
        standing.router,
        health.router,
        internal.router,
        socket.router,
        *AUDITORS,
    ):
        app.include_router(router)
    app.include_router(transparency.router)
    errors.install(app)
    app.add_middleware(Edge, development=development, origins=origins)
    return app
