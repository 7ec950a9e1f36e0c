"""Replays the log into read models: whole, in pages, into whatever tables their names mean on one session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from projections.page import Connection, read_page
from projections.projection import Projection, topics_of

PAGE_EVENTS = 20_000
"""Larger than a runner's page: nobody waits for a single event, and every counter is written once a page."""


class Replay:
    """Fresh projections and how far each has come. One transaction holds one page of all that stand at its beginning.

    ``applied`` counts the positions that were passed, pages that several projections shared once.
    """

    def __init__(
        self, connection: Connection, projections: Iterable[Projection], *, page_events: int = PAGE_EVENTS
    ) -> None:
        self.applied = 0
        self._connection = connection
        self._projections = {projection.name: projection for projection in projections}
        self._positions = dict.fromkeys(self._projections, 0)
        self._page_events = page_events

    def advance(self, limits: Mapping[str, int]) -> None:
        """Bring each projection to its own position.

        Raises:
            EventNotReadable: an event on the way cannot be read by this build.
        """
        while behind := {name: at for name, at in self._positions.items() if at < limits[name]}:
            position = min(behind.values())
            names = [name for name, at in behind.items() if at == position]
            upto = min(position + self._page_events, *(limits[name] for name in names))
            # Those that stand further on join when the others have come there.
            upto = min([upto, *(at for at in behind.values() if at > position)])
            self._apply(names, position, upto)

    def _apply(self, names: list[str], position: int, upto: int) -> None:
        projections = [self._projections[name] for name in names]
        with self._connection.transaction():
            page = read_page(self._connection, position, upto, topics_of(projections))
            for projection in projections:
                projection.apply(self._connection, page)
        self._positions.update(dict.fromkeys(names, upto))
        self.applied += upto - position
