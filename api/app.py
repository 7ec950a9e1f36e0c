"""The HTTP application: its routers and its outer layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from api import errors, health, internal
from api.admin import invite_codes
from api.auditors.routes import ROUTERS as AUDITORS
from api.consumer import (
    batches,
    chat,
    completions,
    embeddings,
    encryption_key,
    files,
    generations,
    images,
    invites,
    keys,
    messages,
    models,
    payments,
    pricing,
    responses,
    transcriptions,
)
from api.consumer.sealed_transport import SealedTransport
from api.edge import Edge
from api.identity import device_routes, link_page, sign_in_routes
from api.openapi import routes as openapi
from api.operators import dead_letters
from api.providers import socket, standing
from api.public import transparency
from api.relay import endpoints as relay

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_app(lifespan: Lifespan, *, development: bool, origins: Sequence[str]) -> FastAPI:
    app = FastAPI(title="Darkbloom", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    # What is asked most reads its own body and nothing else of the request, so FastAPI has nothing to do for it.
    for busy in (chat, responses, completions, messages, embeddings):
        app.router.routes.extend(busy.ROUTES)
    offers = (models, pricing, encryption_key)
    consumers = (images, transcriptions, files, batches, *offers, keys, payments, generations, invites)
    identity = (sign_in_routes, device_routes, link_page, invite_codes)
    parts = (*consumers, *identity, transparency, standing, health, openapi, internal, relay, dead_letters, socket)
    for router in (*(part.router for part in parts), *AUDITORS):
        app.include_router(router)

    def count_wrong_credential(address: str) -> None:
        app.state.coordinator.rate_limits.count_wrong_credential(address)

    def leaving() -> bool:
        return bool(app.state.coordinator.state != "ready")

    errors.install(app, count_wrong_credential)
    app.add_middleware(SealedTransport)
    app.add_middleware(Edge, development=development, origins=origins, leaving=leaving)
    return app
