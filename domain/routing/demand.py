"""What is asked of a machine."""

from __future__ import annotations

import msgspec

from domain.kinds import TEXT, ModelKind


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What a request demands beyond its model.

    ``allowed`` are serial numbers or machine ids, empty for any; ``minimum_trust`` can only raise the network's floor.
    ``only_account`` restricts the request to the machines of one account; ``preferred_account`` asks them first. Either
    is the account that asks.
    """

    allowed: tuple[str, ...] = ()
    minimum_trust: str = "none"
    only_account: str = ""
    preferred_account: str = ""

    @property
    def own_account(self) -> str:
        """The account that asks for its own machines, empty for a request that goes the common way."""
        return self.only_account or self.preferred_account


ANY_MACHINE = Constraints()


class Demand(msgspec.Struct, frozen=True):
    """One request. Sizes are estimates in tokens, ``size_gb`` is the model's in GiB and 0 when nobody knows it.

    ``excluded`` are sessions that already failed this request, and gateways that are out of reach with all their
    machines. With ``nobody_else``, no healthy machine offers the
    model, so one that is put aside may be asked. ``kind`` is what the model is asked to make.
    """

    model: str
    prompt_tokens: int
    output_tokens: int
    excluded: frozenset[str] = frozenset()
    size_gb: float = 0.0
    constraints: Constraints = ANY_MACHINE
    nobody_else: bool = False
    kind: ModelKind = TEXT
