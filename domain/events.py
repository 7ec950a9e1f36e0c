"""The closed registry of events: topic, class, schema version and the path from each older version.

No topic is ever resolved by importing a name that stood in the database.
"""

from __future__ import annotations

from typing import Any

import msgspec

from domain import accounts, adjustments, invites, journal, key_budgets, machines, periods, requests, wallet
from domain.eventsourced import DomainEvent
from domain.upcasts import UPCASTS

EVENT_CLASSES: tuple[type[DomainEvent], ...] = (
    accounts.AccountOpened,
    wallet.PromotionalCreditGranted,
    wallet.EarningCredited,
    wallet.HoldPlaced,
    wallet.HoldCaptured,
    wallet.HoldReleased,
    wallet.WalletAdjusted,
    journal.JournalEntryPosted,
    key_budgets.KeySpendHeld,
    key_budgets.KeySpendCaptured,
    key_budgets.KeySpendReleased,
    requests.RequestAdmitted,
    requests.JobDispatched,
    requests.JobFailed,
    requests.JobCompleted,
    requests.UsageClaimClamped,
    requests.RequestSettled,
    requests.RequestReleased,
    machines.MachineRegistered,
    machines.MachineLinked,
    machines.ProviderSessionOpened,
    machines.ProviderSessionClosed,
    adjustments.AdjustmentProposed,
    adjustments.AdjustmentApproved,
    adjustments.AdjustmentRejected,
    invites.InviteCodeCreated,
    invites.InviteCodeRedeemed,
    invites.InviteCodeDeactivated,
    periods.PeriodLocked,
    periods.PeriodClosed,
)

_encoder = msgspec.json.Encoder(order="deterministic")
_decoders = {cls.TOPIC: msgspec.json.Decoder(cls) for cls in EVENT_CLASSES}
_classes = {cls.TOPIC: cls for cls in EVENT_CLASSES}


class UnknownEvent(ValueError):
    """The log holds an event that this build does not know; a newer build wrote it."""


class UnreadableEvent(ValueError):
    """A stored event does not have the shape that its topic and version promise."""


def encode(event: DomainEvent) -> bytes:
    """The bytes that are stored, and that the transparency log covers: compact JSON, fields in their fixed order."""
    return _encoder.encode(event)


def decode(topic: str, state: bytes) -> DomainEvent:
    """Read a stored event of any version.

    Raises:
        UnknownEvent: the topic or the version is not in this registry.
        UnreadableEvent: the bytes do not fit.
    """
    decoder = _decoders.get(topic)
    if decoder is None:
        raise UnknownEvent(topic)
    try:
        event = decoder.decode(state)
        if event.schema_version == _classes[topic].SCHEMA_VERSION:
            return event
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnreadableEvent(topic) from None
    return _decode_older(topic, state)


def _decode_older(topic: str, state: bytes) -> DomainEvent:
    cls = _classes[topic]
    try:
        payload: dict[str, Any] = msgspec.json.decode(state, type=dict[str, Any])
        version = msgspec.convert(payload["schema_version"], int)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        raise UnreadableEvent(topic) from None
    while version < cls.SCHEMA_VERSION:
        upcast = UPCASTS.get((topic, version))
        if upcast is None:
            raise UnknownEvent(f"{topic} version {version}")
        payload = upcast(payload)
        version += 1
        payload["schema_version"] = version
    if version > cls.SCHEMA_VERSION:
        raise UnknownEvent(f"{topic} version {version}")
    try:
        return msgspec.convert(payload, cls)
    except msgspec.ValidationError as error:
        raise UnreadableEvent(f"{topic}: {error}") from None
