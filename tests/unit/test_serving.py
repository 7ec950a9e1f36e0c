"""What an admission promises when the gateway changes under it."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from api.consumer.admission import Bounds
from api.consumer.serving import admit
from api.coordinator import Coordinator
from api.ports import Caller
from domain.catalog import CatalogModel
from domain.dispatch import ReleaseJob
from domain.errors import ServiceUnavailable
from domain.ledger import Admit

BOUNDS = Bounds(prompt_bound=10, output_bound=10, prompt_estimate=1, output_estimate=1, output_limit=10)


class RenamedGateway(Coordinator):
    """Loses its lease while an admission is written, and goes on under another id before that is done."""

    def __init__(self) -> None:
        self.draining = self.suspended = False
        self.settings = cast("Any", self)
        self.minimum_charge_micro_usd, self.hold_seconds = 100, 60
        self.ledger = cast("Any", self)
        self.admitted: list[Admit] = []
        self.ended: list[ReleaseJob] = []
        self._id = uuid4()

    @property
    def gateway_id(self) -> UUID:
        return self._id

    async def run(self, command: Admit) -> None:
        self.admitted.append(command)
        self._id = uuid4()

    def end_later(self, job: Any) -> None:
        self.ended.append(job)


async def test_what_was_admitted_under_a_lease_that_is_over_is_given_back() -> None:
    gateway, request_id = RenamedGateway(), uuid4()
    caller = Caller(account_id="account", key_id="key")

    with pytest.raises(ServiceUnavailable):
        await admit(gateway, caller, request_id, CatalogModel(id="model", display_name="Model"), BOUNDS)

    assert [command.request_id for command in gateway.admitted] == [request_id]
    assert gateway.ended == [ReleaseJob(request_id=request_id, account_id="account", reason="failed")]
