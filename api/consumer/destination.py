"""Which machines a request may go to: any, the consumer's own, or those that it names (consumer API, sections 5.6 and
21)."""

from __future__ import annotations

import time

from starlette.datastructures import Headers

from api.coordinator import Coordinator
from domain.errors import InvalidRequest, MachineOffline, NoLinkedMachine
from domain.keys import Caller
from domain.routing import Candidate, Constraints, standing_of

HEADER = "X-Darkbloom-Route"


def route_in(headers: Headers) -> str | None:
    """Raises InvalidRequest: the header says neither ``self`` nor ``prefer``."""
    route = headers.get(HEADER)
    if route not in (None, "self", "prefer"):
        raise InvalidRequest(f"'{HEADER}' must be self or prefer.")
    return route


def own_account_in(headers: Headers, caller: Caller) -> str:
    """The account whose own machines count, those among them that serve nobody else: the caller's, or none."""
    return caller.account_id if route_in(headers) else ""


async def destination_of(
    route: str | None, allowed: tuple[str, ...], caller: Caller, model_id: str, coordinator: Coordinator
) -> Constraints:
    """``route`` is the header's value: ``self`` for the account's own machines only, ``prefer`` for those first.

    Raises:
        NoLinkedMachine, MachineOffline: no own machine could serve this model, however long one waited.
    """
    if route == "self":
        await _require_own_machine(caller, model_id, coordinator)
        return Constraints(allowed=allowed, only_account=caller.account_id)
    return Constraints(allowed=allowed, preferred_account=caller.account_id if route == "prefer" else "")


async def _require_own_machine(caller: Caller, model_id: str, coordinator: Coordinator) -> None:
    account_id, policy, now = caller.account_id, coordinator.policy, time.time()
    for machine in await coordinator.fleet.offers(model_id, own_account=account_id):
        if machine.account_id != account_id:
            continue
        standing = standing_of(Candidate(machine), policy, now=now, size_of=coordinator.catalog.size_of)
        if standing.takes(model_id, of_owner=True):
            return
    if not await coordinator.fleet.machines_of(account_id):
        raise NoLinkedMachine
    raise MachineOffline
