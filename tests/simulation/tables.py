"""The fleet, the queue and the leases in memory: an answer to each named statement that gateways and schedulers send.

It takes PostgreSQL's place below the real ``SchedulerFleet``, ``GatewayFleet`` and ``GatewayLease``. The contract tests
in ``tests/integration/test_fleet_contract.py`` run the same operations on both and compare what they return and leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any
from uuid import UUID

import psycopg

from adapters.postgres import sql
from adapters.scheduler.waking import health_in
from domain.routing import Rank

Row = tuple[Any, ...]
Claim = tuple[UUID, int]
"""A request and its attempt."""

RANKED_BY = {
    sql.CHEAPEST_FOR_SHORT: "short_ms",
    sql.CHEAPEST_FOR_USUAL: "usual_ms",
    sql.CHEAPEST_FOR_LONG: "long_ms",
    sql.CHEAPEST_FOR_READING: "reading_ms",
}
NARROWED_MAX = 24
TOUCH_SECONDS_MAX = 180.0
CLAIM_SECONDS_MIN = 10.0
WAITER_KEPT_SECONDS = 60.0
WAKE_SECONDS_MAX = 5.0
ENDED_GATEWAY_SECONDS = 86_400.0


@dataclass
class Machine:
    """A row of ``fleet``."""

    session_id: str
    machine_id: str
    gateway_id: str
    account_id: str
    serial: str
    capacity: int
    routable: bool
    snapshot: bytes
    busy: int
    updated_at: float


@dataclass
class Offer:
    """A row of ``fleet_models``."""

    session_id: str
    model: str
    gateway_id: str
    trust: int
    routable: bool
    capacity: int
    busy: int
    requests_model: int
    output_tokens_model: int
    rank: Rank
    put_aside_until: float


@dataclass
class Claimed:
    """A row of ``claims``."""

    session_id: str
    account_id: str
    model: str
    output_tokens: int
    gateway_id: str
    claimed_at: float
    expires_at: float


@dataclass
class Waiter:
    """A row of ``waiters``."""

    request_id: UUID
    attempt: int
    account_id: str
    model: str
    gateway_id: str
    turn: int
    enqueued_at: float
    deadline: float
    message: bytes
    woken_at: float | None = None

    @property
    def place(self) -> tuple[int, float]:
        return self.turn, self.enqueued_at


@dataclass
class Wish:
    """A row of ``model_demand``."""

    asked_at: float | None = None
    slot_seconds: float | None = None
    turn: int = 0


@dataclass
class OpenRequest:
    """A row of ``open_requests``."""

    account_id: str
    gateway_id: str
    model: str
    admitted_at: float
    expires_at: float


@dataclass
class Lease:
    """A row of ``gateways``."""

    internal_url: str
    lease_until: float


@dataclass
class MachineHealth:
    """A row of ``machine_health``."""

    account_id: str
    models: list[str]
    health: bytes
    last_seen_at: float = field(default=0.0)


class Tables:
    """``clock`` is the database's own, in Unix seconds; ``changes`` counts statements that may have changed a row."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.changes = 0
        self.fleet: dict[str, Machine] = {}
        self.offers: dict[tuple[str, str], Offer] = {}
        self.claims: dict[Claim, Claimed] = {}
        self.waiters: dict[Claim, Waiter] = {}
        self.wishes: dict[str, Wish] = {}
        self.health: dict[str, MachineHealth] = {}
        self.open_requests: dict[UUID, OpenRequest] = {}
        self.gateways: dict[str, Lease] = {}
        self._last_enqueued_at = 0.0
        self._looks: dict[str, Callable[[Any], Iterable[Row]]] = {
            sql.WHO_WAITS: self._who_waits,
            sql.VACANCIES: self._vacancies,
            sql.MACHINES_OF_ACCOUNT: self._machines_of_account,
        }
        self._statements: dict[str, Callable[[Any], Iterable[Row]]] = {
            sql.MACHINES_FOR: self._machines_for,
            sql.MODEL_SUPPLY: self._model_supply,
            sql.MODEL_OFFERS: self._model_offers,
            sql.NOTE_DEMAND: self._note_demand,
            sql.NOTE_SLOT_SECONDS: self._note_slot_seconds,
            sql.ANNOUNCE_MACHINES: self._announce_machines,
            sql.TOUCH_MACHINES: self._touch_machines,
            sql.WITHDRAW_MACHINE: self._withdraw_machine,
            sql.CLAIM_SLOT: self._claim_slot,
            sql.CLAIM_OF: self._claim_of,
            sql.RELEASE_CLAIMS: self._release_claims,
            sql.ROOM_TO_SPARE: self._room_to_spare,
            sql.IDLE_FOR_MODEL: self._idle_for_model,
            sql.LOCK_QUEUE: lambda _: (),
            sql.PARK_WAITER: self._park_waiter,
            sql.SHED_WAITER: self._shed_waiter,
            sql.PLACE_IN_QUEUE: self._place_in_queue,
            sql.WAKE_WAITER: self._wake_waiter,
            sql.WAKE_THESE: self._wake_these,
            sql.ANYBODY_WAITS: self._anybody_waits,
            sql.REMOVE_WAITER: self._remove_waiter,
            sql.WAITING_MODELS: self._waiting_models,
            sql.SWEEP_FLEET: self._sweep_fleet,
            sql.MEET_MACHINE: self._meet_machine,
            sql.LOCK_HEALTH: self._lock_health,
            sql.WRITE_HEALTH: self._write_health,
            sql.PUT_ASIDE: self._put_aside,
            sql.TAKE_LEASE: self._take_lease,
            sql.RENEW_LEASE: self._renew_lease,
            sql.END_LEASE: self._end_lease,
            sql.GATEWAY_URL: self._gateway_url,
            sql.ABANDONED_REQUESTS: self._abandoned_requests,
            sql.DROP_ENDED_GATEWAYS: self._drop_ended_gateways,
        }

    def execute(self, statement: str, parameters: Any) -> list[Row]:
        """The rows that the statement returns. Raises KeyError for one that nobody has taught it."""
        order, look = RANKED_BY.get(statement), self._looks.get(statement)
        if order is not None:
            return list(self._cheapest(order, parameters))
        if look is not None:
            return list(look(parameters))
        self.changes += 1
        return list(self._statements[statement](parameters))

    def truncate(self) -> None:
        """What a crash of the server does to unlogged tables."""
        self.changes += 1
        for table in (self.fleet, self.offers, self.claims, self.waiters, self.wishes):
            table.clear()

    # --- candidates --------------------------------------------------------------------------------------------------

    def _cheapest(self, order: str, wanted: Mapping[str, Any]) -> Iterable[Row]:
        now, gateway_id = self._clock(), _text(wanted["gateway_id"])
        for trust in wanted["trusts"]:
            found = [
                one
                for one in self.offers.values()
                if one.model == wanted["model"]
                and one.trust == trust
                and one.routable
                and one.busy < one.capacity
                and gateway_id in (None, one.gateway_id)
                and one.rank.room_gb >= wanted["room_gb"]
                and one.put_aside_until <= now
                and one.session_id in self.fleet
            ]
            found.sort(key=lambda one: getattr(one.rank, order) + one.rank.queue_ms * max(one.busy, one.rank.in_flight))
            yield from (self._candidate(one) for one in found[:NARROWED_MAX])

    def _candidate(self, offer: Offer) -> Row:
        machine = self.fleet[offer.session_id]
        fared = self.health.get(machine.machine_id)
        counts = offer.busy, offer.requests_model, offer.output_tokens_model
        return (machine.snapshot, *counts, fared.health if fared else None)

    def _machines_for(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        gateway_id = _text(wanted["gateway_id"])
        for offer in self.offers.values():
            machine = self.fleet.get(offer.session_id)
            if (
                machine is not None
                and offer.model == wanted["model"]
                and (offer.routable or _is_own(machine, wanted))
                and gateway_id in (None, machine.gateway_id)
                and wanted["session_id"] in (None, machine.session_id)
                and _is_meant(machine, wanted)
            ):
                yield self._candidate(offer)

    def _model_supply(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        now, gateway_id = self._clock(), _text(wanted["gateway_id"])
        restricted = wanted["account_id"] is not None or wanted["allowed"] is not None
        found = [
            one
            for one in self.offers.values()
            if one.model == wanted["model"]
            and (
                (one.routable and one.trust in wanted["trusts"])
                or (
                    one.trust in wanted["own_trusts"]
                    and one.session_id in self.fleet
                    and _is_own(self.fleet[one.session_id], wanted)
                )
            )
            and gateway_id in (None, one.gateway_id)
            and (not restricted or (one.session_id in self.fleet and _is_meant(self.fleet[one.session_id], wanted)))
        ]
        healthy = sum(one.put_aside_until <= now for one in found)
        wish = self.wishes.get(wanted["model"])
        yield len(found), healthy, sum(one.capacity for one in found), wish.slot_seconds if wish else None

    def _model_offers(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        gateway_id, model = _text(wanted["gateway_id"]), wanted["model"]
        for machine in self.fleet.values():
            mine = [one for one in self.offers.values() if one.session_id == machine.session_id]
            if (
                machine.routable
                and gateway_id in (None, machine.gateway_id)
                and any(model in (None, one.model) and (one.routable or _is_own(machine, wanted)) for one in mine)
            ):
                yield (machine.snapshot,)

    def _note_demand(self, parameters: Row) -> Iterable[Row]:
        self._wish(parameters[0]).asked_at = self._clock()
        return ()

    def _note_slot_seconds(self, parameters: Row) -> Iterable[Row]:
        for model, seconds in zip(*parameters, strict=True):
            wish = self._wish(model)
            wish.slot_seconds = seconds if wish.slot_seconds is None else wish.slot_seconds * 0.8 + seconds * 0.2
        return ()

    def _wish(self, model: str) -> Wish:
        return self.wishes.setdefault(model, Wish())

    # --- machines ----------------------------------------------------------------------------------------------------

    def _announce_machines(self, told: Mapping[str, Sequence[Any]]) -> Iterable[Row]:
        names = ("sessions", "gateways", "machines", "accounts", "serials", "trusts", "capacities", "routables")
        trusts, new = {}, set()
        for values in zip(*(told[name] for name in names), told["snapshots"], strict=True):
            session_id, gateway_id, machine_id, account_id, serial, trust, capacity, routable, snapshot = values
            trusts[session_id] = trust
            known = self.fleet.get(session_id)
            if known is None:
                new.add(session_id)
                busy = sum(one.session_id == session_id for one in self.claims.values())
                self.fleet[session_id] = Machine(
                    session_id,
                    machine_id,
                    gateway_id,
                    account_id,
                    serial,
                    capacity,
                    routable,
                    snapshot,
                    busy,
                    self._clock(),
                )
            else:
                known.gateway_id, known.account_id, known.capacity = gateway_id, account_id, capacity
                known.routable, known.snapshot, known.updated_at = routable, snapshot, self._clock()
        ranks = zip(*(told[name] for name in Rank._fields), strict=True)
        offered = zip(
            told["model_sessions"], told["models"], told["model_routables"], ranks, told["put_aside_until"], strict=True
        )
        for session_id, model, routable, rank, put_aside_until in offered:
            self._offer(
                session_id, model, trusts[session_id], routable, Rank(*rank), put_aside_until, is_new=session_id in new
            )
        for session_id in told["sessions"]:
            machine = self.fleet[session_id]
            if machine.routable:
                yield session_id, max(machine.capacity - machine.busy, 0)

    def _offer(
        self,
        session_id: str,
        model: str,
        trust: int,
        routable: bool,
        rank: Rank,
        put_aside_until: float,
        *,
        is_new: bool,
    ) -> None:
        machine, known = self.fleet[session_id], self.offers.get((session_id, model))
        mine = [one for one in self.claims.values() if one.session_id == session_id and one.model == model]
        counts = (len(mine), sum(one.output_tokens for one in mine))
        if is_new:
            fared = self.health.get(machine.machine_id)
            put_aside_until = health_in(fared.health if fared else None).put_aside_until
        if known is not None:
            put_aside_until = known.put_aside_until
            if not is_new:
                counts = known.requests_model, known.output_tokens_model
        self.offers[session_id, model] = Offer(
            session_id,
            model,
            machine.gateway_id,
            trust,
            routable,
            machine.capacity,
            machine.busy,
            *counts,
            rank,
            put_aside_until,
        )

    def _touch_machines(self, parameters: Row) -> Iterable[Row]:
        for session_id in parameters[0]:
            machine = self.fleet.get(session_id)
            if machine is not None:
                machine.updated_at = self._clock()
                yield (session_id,)

    def _withdraw_machine(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        session_id = wanted["session_id"]
        self.fleet.pop(session_id, None)
        self.offers = {key: one for key, one in self.offers.items() if one.session_id != session_id}
        self.claims = {key: one for key, one in self.claims.items() if one.session_id != session_id}
        return ()

    # --- slots -------------------------------------------------------------------------------------------------------

    def _claim_slot(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        machine = self.fleet.get(wanted["session_id"])
        if machine is None or not machine.routable or machine.busy >= machine.capacity:
            return ()
        if wanted["alone"] and machine.busy:
            return ()
        key = wanted["request_id"], wanted["attempt"]
        if key in self.claims:
            raise psycopg.errors.UniqueViolation
        now = self._clock()
        machine.busy += 1
        self._count(machine, wanted["model"], 1, wanted["output_tokens"])
        self._drop_waiters(wanted["request_id"])
        self.claims[key] = Claimed(
            machine.session_id,
            wanted["account_id"],
            wanted["model"],
            wanted["output_tokens"],
            str(wanted["gateway_id"]),
            now,
            now + wanted["seconds"],
        )
        return ((machine.session_id,),)

    def _count(self, machine: Machine, model: str, requests: int, output_tokens: int) -> list[str]:
        """Make a machine's offers say what its row says; returns its models."""
        mine = [one for one in self.offers.values() if one.session_id == machine.session_id]
        for one in mine:
            one.busy = machine.busy
            if one.model == model:
                one.requests_model += requests
                one.output_tokens_model += output_tokens
        return [one.model for one in mine]

    def _claim_of(self, parameters: Row) -> Iterable[Row]:
        claim = self.claims.get((parameters[0], parameters[1]))
        return ((claim.session_id,),) if claim else ()

    def _release_claims(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        gone, sessions, models = list[Claimed](), dict[str, None](), dict[str, None]()
        for key in zip(wanted["request_ids"], wanted["attempts"], strict=True):
            claim = self.claims.pop(key, None)
            if claim is None:
                continue
            gone.append(claim)
            machine = self.fleet.get(claim.session_id)
            if machine is not None:
                machine.busy -= 1
                sessions[machine.session_id] = None
                models |= dict.fromkeys(self._count(machine, claim.model, -1, -claim.output_tokens))
        now = self._clock()
        return [(one.model, now - one.claimed_at, list(sessions), list(models)) for one in gone]

    def _room_to_spare(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        now, model = self._clock(), wanted["model"]
        free = sum(
            max(one.capacity - one.busy, 0)
            for one in self.offers.values()
            if one.model == model and one.routable and one.put_aside_until <= now
        )
        yield (free >= 2 and all(one.model != model for one in self.waiters.values()),)

    def _idle_for_model(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        now, gateway_id = self._clock(), _text(wanted["gateway_id"])
        idle = any(
            one.model == wanted["model"]
            and one.routable
            and one.trust >= wanted["trust"]
            and one.put_aside_until <= now
            and not one.rank.in_flight
            and gateway_id in (None, one.gateway_id)
            and one.session_id in self.fleet
            and not self.fleet[one.session_id].busy
            for one in self.offers.values()
        )
        return [()] if idle and not self._waiting(wanted["model"]) else []

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _waiting(self, model: str) -> list[Waiter]:
        now = self._clock()
        return [one for one in self.waiters.values() if one.model == model and one.deadline > now]

    def _park_waiter(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        request_id, model, account_id = wanted["request_id"], wanted["model"], wanted["account_id"]
        waiting = self._waiting(model)
        others = sum(one.request_id != request_id for one in waiting)
        if others >= wanted["depth_max"] or request_id not in self.open_requests:
            return ()
        key = request_id, wanted["attempt"]
        known = self.waiters.get(key)
        if known is not None:
            known.woken_at = None
            return ((*known.place, False),)
        mine = [one for one in waiting if one.account_id == account_id]
        served = sum(one.account_id == account_id and one.model == model for one in self.claims.values())
        reached = self.wishes[model].turn if model in self.wishes else 0
        turn = 1 + max([reached + served + len(mine), *(one.turn for one in mine)])
        now = self._clock()
        self._last_enqueued_at = enqueued_at = max(now, self._last_enqueued_at + 1e-6)
        self.waiters[key] = Waiter(
            *key,
            account_id,
            model,
            str(wanted["gateway_id"]),
            turn,
            enqueued_at,
            now + wanted["seconds"],
            wanted["message"],
        )
        return ((turn, enqueued_at, True),)

    def _shed_waiter(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        if wanted["request_id"] not in self.open_requests:
            return ()
        waiting = self._waiting(wanted["model"])
        shares: dict[str, int] = {}
        for one in waiting:
            shares[one.account_id] = shares.get(one.account_id, 0) + 1
        own = shares.get(wanted["account_id"], 0)
        rich = [one for one in waiting if one.woken_at is None and shares[one.account_id] > 1 + own]
        if not rich:
            return ()
        last = max(rich, key=lambda one: (shares[one.account_id], *one.place))
        del self.waiters[last.request_id, last.attempt]
        return ((last.message,),)

    def _place_in_queue(self, parameters: Row) -> Iterable[Row]:
        model, *place = parameters
        return ((sum(one.place <= tuple(place) for one in self._waiting(model)),),)

    def _wake_waiter(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        return self._wake(self._asleep(wanted))

    def _wake_these(self, parameters: Row) -> Iterable[Row]:
        chosen = [self.waiters.get(key) for key in zip(*parameters, strict=True)]
        return self._wake([one for one in chosen if one is not None and one.woken_at is None])

    def _who_waits(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        return [(one.message,) for one in self._asleep(wanted)]

    def _vacancies(self, parameters: Row) -> Iterable[Row]:
        for session_id in sorted(map(str, parameters[0])):
            machine = self.fleet.get(session_id)
            if machine is None or not machine.routable or machine.busy >= machine.capacity:
                continue
            fared = self.health.get(machine.machine_id)
            requests = {one.model: one.requests_model for one in self.offers.values() if one.session_id == session_id}
            yield machine.snapshot, machine.busy, fared.health if fared else None, requests

    def _asleep(self, wanted: Mapping[str, Any]) -> list[Waiter]:
        """As many as are wanted, in their turn."""
        gateway_id, now = _text(wanted["gateway_id"]), self._clock()
        asleep = [
            one
            for one in self.waiters.values()
            if one.model in wanted["models"]
            and gateway_id in (None, one.gateway_id)
            and one.woken_at is None
            and one.deadline > now
        ]
        asleep.sort(key=lambda one: (one.model, one.place))
        lines = [
            (place, waiter)
            for _, line in groupby(asleep, key=lambda one: one.model)
            for place, waiter in enumerate(line, 1)
        ]
        lines.sort(key=lambda entry: (entry[0], entry[1].enqueued_at))
        return [waiter for _, waiter in lines[: wanted["count"]]]

    def _wake(self, waiters: list[Waiter]) -> list[Row]:
        for one in waiters:
            one.woken_at = self._clock()
            wish = self._wish(one.model)
            wish.turn = max(wish.turn, one.turn)
        return [(one.message,) for one in waiters]

    def _anybody_waits(self, parameters: Row) -> Iterable[Row]:
        return [()] if self._waiting(parameters[0]) else []

    def _remove_waiter(self, parameters: Row) -> Iterable[Row]:
        self._drop_waiters(parameters[0])
        return ()

    def _drop_waiters(self, request_id: UUID) -> None:
        for key in [key for key in self.waiters if key[0] == request_id]:
            del self.waiters[key]

    def _waiting_models(self, _: Any) -> Iterable[Row]:
        now = self._clock()
        models = {one.model for one in self.waiters.values() if one.woken_at is None and one.deadline > now}
        return [(model,) for model in sorted(models)]

    # --- sweeping ----------------------------------------------------------------------------------------------------

    def _sweep_fleet(self, _: Any) -> Iterable[Row]:
        now = self._clock()
        lapsed = {
            one.session_id
            for one in self.fleet.values()
            if one.gateway_id not in self.gateways
            or self.gateways[one.gateway_id].lease_until < now
            or one.updated_at < now - TOUCH_SECONDS_MAX
        }
        stale = [
            key
            for key, one in self.claims.items()
            if one.expires_at < now
            or one.session_id in lapsed
            or (one.claimed_at < now - CLAIM_SECONDS_MIN and key[0] not in self.open_requests)
        ]
        for key in [key for key, one in self.waiters.items() if one.deadline < now - WAITER_KEPT_SECONDS]:
            del self.waiters[key]
        for waiter in self.waiters.values():
            if waiter.woken_at is not None and waiter.woken_at < now - WAKE_SECONDS_MAX:
                waiter.woken_at = None
        for session_id in lapsed:
            del self.fleet[session_id]
        for key in stale:
            gone = self.claims.pop(key)
            machine = self.fleet.get(gone.session_id)
            if machine is not None:
                machine.busy -= 1
                self._count(machine, gone.model, -1, -gone.output_tokens)
        self.offers = {key: one for key, one in self.offers.items() if one.session_id in self.fleet}
        return ()

    # --- how machines fare -------------------------------------------------------------------------------------------

    def _meet_machine(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        for older in self.fleet.values():
            if older.machine_id == wanted["machine_id"] and older.session_id != wanted["session_id"] and older.routable:
                older.routable = False
                for offer in self.offers.values():
                    if offer.session_id == older.session_id:
                        offer.routable = False
        known = self.health.get(wanted["machine_id"])
        health = known.health if known else wanted["neutral"]
        self.health[wanted["machine_id"]] = MachineHealth(wanted["account_id"], wanted["models"], health, self._clock())
        return ((health,),)

    def _machines_of_account(self, wanted: Mapping[str, Any]) -> Iterable[Row]:
        """Without what only a person reads: their hardware, and when their models were last asked for."""
        for machine_id, known in sorted(self.health.items()):
            if known.account_id != wanted["account_id"] or wanted["machine_id"] not in (None, machine_id):
                continue
            seen_at = datetime.fromtimestamp(known.last_seen_at, UTC)
            here = [one for one in self.fleet.values() if one.machine_id == machine_id]
            snapshot = max(here, key=lambda one: one.updated_at).snapshot if here else None
            yield machine_id, known.account_id, "", "", known.models, seen_at, known.health, snapshot, None, None, None

    def _lock_health(self, parameters: Row) -> Iterable[Row]:
        return [
            (machine_id, self.health[machine_id].health)
            for machine_id in sorted(parameters[0])
            if machine_id in self.health
        ]

    def _write_health(self, parameters: Row) -> Iterable[Row]:
        for machine_id, health, at in zip(*parameters, strict=True):
            known = self.health.get(machine_id)
            if known is not None:
                known.health, known.last_seen_at = health, max(known.last_seen_at, at)
        return ()

    def _put_aside(self, parameters: Row) -> Iterable[Row]:
        aside = dict(zip(*parameters, strict=True))
        for offer in self.offers.values():
            machine = self.fleet.get(offer.session_id)
            if machine is not None and machine.machine_id in aside:
                offer.put_aside_until = aside[machine.machine_id]
        return ()

    # --- leases ------------------------------------------------------------------------------------------------------

    def _take_lease(self, parameters: Row) -> Iterable[Row]:
        gateway_id, internal_url, seconds = parameters
        if str(gateway_id) in self.gateways:
            raise psycopg.errors.UniqueViolation
        self.gateways[str(gateway_id)] = Lease(internal_url, self._clock() + seconds)
        return ()

    def _renew_lease(self, parameters: Row) -> Iterable[Row]:
        seconds, gateway_id = parameters
        lease, now = self.gateways.get(str(gateway_id)), self._clock()
        if lease is None or lease.lease_until <= now:
            return ()
        lease.lease_until = now + seconds
        return ((gateway_id,),)

    def _end_lease(self, parameters: Row) -> Iterable[Row]:
        lease = self.gateways.get(str(parameters[0]))
        if lease is not None:
            lease.lease_until = min(lease.lease_until, self._clock())
        return ()

    def _gateway_url(self, parameters: Row) -> Iterable[Row]:
        lease = self.gateways.get(str(parameters[0]))
        return ((lease.internal_url,),) if lease else ()

    def _abandoned_requests(self, parameters: Row) -> Iterable[Row]:
        grace_seconds, limit = parameters
        now = self._clock()
        abandoned = [
            (one.admitted_at, request_id, one.account_id)
            for request_id, one in self.open_requests.items()
            if one.gateway_id not in self.gateways
            or self.gateways[one.gateway_id].lease_until < now - grace_seconds
            or one.expires_at < now
        ]
        return [(request_id, account_id) for _, request_id, account_id in sorted(abandoned)[:limit]]

    def _drop_ended_gateways(self, _: Any) -> Iterable[Row]:
        now, in_use = self._clock(), {one.gateway_id for one in self.open_requests.values()}
        for gateway_id, lease in list(self.gateways.items()):
            if lease.lease_until < now - ENDED_GATEWAY_SECONDS and gateway_id not in in_use:
                del self.gateways[gateway_id]
        return ()


def _text(gateway_id: UUID | None) -> str | None:
    return None if gateway_id is None else str(gateway_id)


def _is_own(machine: Machine, wanted: Mapping[str, Any]) -> bool:
    """Whether the account that asks may ask for a machine that not everybody may."""
    return machine.routable and machine.account_id == wanted["own_account"]


def _is_meant(machine: Machine, wanted: Mapping[str, Any]) -> bool:
    account_id, allowed = wanted["account_id"], wanted["allowed"]
    return account_id in (None, machine.account_id) and (
        allowed is None or machine.machine_id in allowed or machine.serial in allowed
    )
