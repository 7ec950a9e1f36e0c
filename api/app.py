"""The HTTP application: its routers and its outer layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from api import errors, health, internal
from api.consumer import chat, completions, messages, models, payments, responses
from api.edge import Edge
from api.providers import socket

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_app(lifespan: Lifespan, *, development: bool, origins: Sequence[str]) -> FastAPI:
    app = FastAPI(title="Darkbloom", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    dialects = (chat, responses, completions, messages)
    for part in (*dialects, models, payments, health, internal, socket):
        app.include_router(part.router)
    errors.install(app)
    app.add_middleware(Edge, development=development, origins=origins)
    return app
