"""Which machines a request may go to: any, the consumer's own, or those that it names (consumer API, sections 5.6 and
21)."""

from __future__ import annotations

from starlette.datastructures import Headers

from api.coordinator import Coordinator
from domain.errors import InvalidRequest, MachineOffline, NoLinkedMachine
from domain.keys import Caller
from domain.routing import Constraints

HEADER = "X-Darkbloom-Route"


def route_in(headers: Headers) -> str | None:
    """Raises InvalidRequest: the header says neither ``self`` nor ``prefer``."""
    route = headers.get(HEADER)
    if route not in (None, "self", "prefer"):
        raise InvalidRequest(f"'{HEADER}' must be self or prefer.")
    return route


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
    if any(machine.account_id == caller.account_id for machine in await coordinator.fleet.offers(model_id)):
        return
    if not await coordinator.fleet.machines_of(caller.account_id):
        raise NoLinkedMachine
    raise MachineOffline
