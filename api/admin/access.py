"""Who may use the admin's routes."""

from __future__ import annotations

from starlette.requests import Request

from api.consumer.auth import authenticate
from api.coordinator import Coordinator
from domain.errors import Forbidden
from domain.keys import Caller


async def admit_admin(request: Request) -> tuple[Coordinator, Caller]:
    """The admin key, a session of an administrator, or an API key with the role admin.

    Raises:
        AuthenticationFailed: no valid credential. Forbidden: it is somebody else's.
    """
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    if not caller.is_admin and caller.key.role != "admin":
        raise Forbidden("This is for administrators only.")
    return coordinator, caller
