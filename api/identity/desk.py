"""The parts of signing in that are configured here, for the handlers."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api.identity.devices import DeviceLogin
from api.identity.doorkeeper import Doorkeeper
from api.identity.limits import IdentityLimits
from api.identity.ports import People
from api.identity.sign_in import EmailSignIn
from domain.errors import IncompleteRequest, NotConfigured

NO_STORE = {"Cache-Control": "no-store"}


class IdentityDesk(NamedTuple):
    """``sign_in`` is None where no mail can be sent, and with ``devices`` where there is no session key.
    ``console_url`` has no slash at its end."""

    doorkeeper: Doorkeeper
    limits: IdentityLimits
    people: People
    sign_in: EmailSignIn | None
    devices: DeviceLogin | None
    console_url: str

    def need_sign_in(self) -> EmailSignIn:
        """Raises NotConfigured."""
        if self.sign_in is None:
            raise NotConfigured("Signing in by e-mail is not set up here.")
        return self.sign_in

    def need_devices(self) -> DeviceLogin:
        """Raises NotConfigured."""
        if self.devices is None:
            raise NotConfigured("Machines cannot be linked here; ask the operator for a provider token.")
        return self.devices


def identity_of(request: Request) -> IdentityDesk:
    desk: IdentityDesk = request.app.state.identity
    return desk


def needed_text(body: dict[str, Any], name: str, characters_max: int = 300) -> str:
    """A member that must be there. Raises IncompleteRequest."""
    value = body.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > characters_max:
        raise IncompleteRequest(f"'{name}' is missing.", param=name)
    return value.strip()


def answer(body: object, status: int = 200) -> Response:
    """What concerns credentials is never kept on the way."""
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json", headers=NO_STORE)
