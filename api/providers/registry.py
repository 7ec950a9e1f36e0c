"""The machines whose sockets this gateway holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.providers.session import ProviderSession


class MachineRegistry:
    """Sessions by their id. A machine has one session at a time: the newer one that proved its key stays."""

    def __init__(self) -> None:
        self._sessions: dict[str, ProviderSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: ProviderSession) -> None:
        self._sessions[session.session_id] = session

    def remove(self, session: ProviderSession) -> None:
        self._sessions.pop(session.session_id, None)

    def find(self, session_id: str) -> ProviderSession | None:
        return self._sessions.get(session_id)

    def others_of(self, session: ProviderSession) -> list[ProviderSession]:
        """Older connections of the same machine."""
        return [
            other
            for other in self._sessions.values()
            if other is not session and other.identity.machine_id == session.identity.machine_id
        ]

    def all(self) -> list[ProviderSession]:
        return list(self._sessions.values())
