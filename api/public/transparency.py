"""GET /v1/transparency/…: signed checkpoints, public keys, and proofs that the log only grows and holds one's own."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate, token_of
from api.consumer.payments import rfc3339
from api.coordinator import Coordinator
from api.public import proving
from api.public.ports import PublicKey
from domain.errors import AuthenticationFailed, InvalidRequest, NotFound
from domain.protocol import PROVIDER_TOKEN_PREFIX
from domain.wallet import Wallet

router = APIRouter()

_POSITION_DIGITS = 18


@router.get("/v1/transparency/checkpoint")
async def get_checkpoint(request: Request) -> Response:
    """The newest signed checkpoint, or the one of ``size``, as a signed note."""
    coordinator: Coordinator = request.app.state.coordinator
    signed = await proving.signed_checkpoint(coordinator.transparency, _number(request, "size"))
    return Response(signed.encode(), media_type="text/plain; charset=utf-8")


@router.get("/v1/transparency/keys")
async def get_keys(request: Request) -> Response:
    """Every public key that this log ever had, the oldest first."""
    coordinator: Coordinator = request.app.state.coordinator
    return _json({"keys": [_entry(key) for key in await coordinator.transparency.checkpoints.keys()]})


@router.get("/v1/transparency/consistency")
async def get_consistency(request: Request) -> Response:
    """The proof that the log of ``to`` events begins with the log of ``from`` events."""
    coordinator: Coordinator = request.app.state.coordinator
    old_size = _number(request, "from")
    if old_size is None:
        raise InvalidRequest("Say with 'from' which size you know already.", param="from")
    return _json(await proving.prove_consistency(coordinator.transparency, old_size, _number(request, "to")))


@router.get("/v1/transparency/inclusion")
async def get_inclusion(request: Request) -> Response:
    """The proof of an event of one's own wallet: by ``position``, or the charge or earning of a ``job_id``."""
    coordinator: Coordinator = request.app.state.coordinator
    wallet_id = Wallet.id_of(await _account_of(request, coordinator))
    position = _number(request, "position")
    job_id = _job_id(request)
    if (position is None) == (job_id is None):
        raise InvalidRequest("Name the event with 'position' or with 'job_id', one of the two.", param="job_id")
    if job_id is not None:
        position = await coordinator.transparency.tree.position_of_job(job_id, wallet_id)
    if position is None:
        raise NotFound("The log holds no charge and no earning of yours for that job.")
    size = _number(request, "size")
    return _json(await proving.prove_inclusion(coordinator.transparency, position, size=size, wallet_id=wallet_id))


async def _account_of(request: Request, coordinator: Coordinator) -> str:
    """An API key's account, or the one that a provider token links machines to."""
    token = token_of(request.headers)
    if not token.startswith(PROVIDER_TOKEN_PREFIX):
        return (await authenticate(request.headers, coordinator.credentials)).account_id
    account_id = await coordinator.credentials.find_provider_token(token)
    if account_id is None:
        raise AuthenticationFailed("This provider token is unknown or revoked.")
    return account_id


def _entry(entry: PublicKey) -> dict[str, str | None]:
    return {
        "key_id": entry.key.key_id.hex(),
        "verifier_key": str(entry.key),
        "announcement": entry.announcement or None,
        "announced_at": rfc3339(entry.announced_at),
        "retired_at": rfc3339(entry.retired_at) if entry.retired_at else None,
    }


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _POSITION_DIGITS and int(text) > 0):
        raise InvalidRequest(f"'{name}' is a whole number, 1 or more.", param=name)
    return int(text)


def _job_id(request: Request) -> UUID | None:
    text = request.query_params.get("job_id")
    if text is None:
        return None
    try:
        return UUID(text.removeprefix("chatcmpl-"))
    except ValueError:
        raise InvalidRequest("'job_id' is the id of a job, as the usage list shows it.", param="job_id") from None


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
