"""The machines whose sockets this gateway holds."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.providers.session import ProviderSession


class MachineRegistry:
    """Sessions by their id. A machine has one session at a time: the newer one that proved its key stays."""

    def __init__(self) -> None:
        self._sessions: dict[str, ProviderSession] = {}
        self._by_machine: defaultdict[str, list[ProviderSession]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: ProviderSession) -> None:
        self._sessions[session.session_id] = session
        self._by_machine[session.identity.machine_id].append(session)

    def remove(self, session: ProviderSession) -> None:
        if self._sessions.pop(session.session_id, None) is None:
            return
        sessions = self._by_machine[session.identity.machine_id]
        sessions.remove(session)
        if not sessions:
            del self._by_machine[session.identity.machine_id]

    def find(self, session_id: str) -> ProviderSession | None:
        return self._sessions.get(session_id)

    def others_of(self, session: ProviderSession) -> list[ProviderSession]:
        """Older connections of the same machine."""
        return [other for other in self._by_machine.get(session.identity.machine_id, ()) if other is not session]

    def all(self) -> list[ProviderSession]:
        return list(self._sessions.values())
