"""The whole market in one thread: gateways, schedulers, machines, consumers, and what lies between them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from domain.eventsourced import Written
from domain.keys import Caller
from domain.ledger import GrantCredit
from domain.machines import machine_id_of
from tests.simulation import faults, rules
from tests.simulation.broker import Queues
from tests.simulation.checks import Broken, Checks
from tests.simulation.consumer import PATIENT_SECONDS, Wish, ask, wish_of
from tests.simulation.gateway import SimulatedGateway, SimulatedScheduler
from tests.simulation.ledger import SimulatedLog
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.processes import task_factory
from tests.simulation.tables import Tables
from tests.simulation.virtual_time import BEGINNING, NothingLeftToDo, VirtualLoop, world_of

CALM_EVERY = 5
"""One seed of so many has no faults: there everything must go right at once."""

HEDGES_EVERY = 2
"""In one seed of so many, gateways ask a second machine when a first content is late."""

TRAFFIC_SECONDS = 45.0
SETTLING_SECONDS = 15.0
"""After the last fault, so long may what is dead still look alive: a lease, its grace and a sweep."""

HEALING_SECONDS = 240
LAST_LINES = 40
CREDIT_MICRO_USD = 1_000_000
CLOCK_SKEW_SECONDS = 1.5


class Outcome(NamedTuple):
    """What a run came to. ``digest`` is the same for the same seed, ``broken`` says what did not hold, or nothing."""

    seed: int
    digest: str
    broken: str
    last_lines: list[str]
    requests: int
    answered: int
    hedges: int
    events: int
    virtual_seconds: float
    fault_kinds: tuple[str, ...]


class Credentials:
    """Keys of accounts. A key's secret is its name."""

    def __init__(self) -> None:
        self._accounts: dict[str, str] = {}

    def add(self, key: str, account_id: str) -> None:
        self._accounts[key] = account_id

    def keys(self) -> list[str]:
        return list(self._accounts)

    def revoke(self, key: str) -> None:
        self._accounts.pop(key, None)

    async def find_api_key(self, token: str) -> Caller | None:
        account_id = self._accounts.get(token)
        return Caller(account_id, token) if account_id else None

    async def find_key_by_id(self, key_id: str) -> Caller | None:
        return await self.find_api_key(key_id)

    async def find_provider_token(self, token: str) -> str | None:
        return token.removeprefix("token of ") or None


class Market:
    """``excuses`` are faults that may cost somebody an answer or its price; ``slots_are_known`` is false once the fleet
    table and the machines may differ in what runs."""

    def __init__(
        self,
        seed: int,
        loop: VirtualLoop,
        chance: Random,
        on_line: Callable[[str], None],
        only_faults: Sequence[str],
        *,
        is_crowded: bool,
    ) -> None:
        self._only_faults = only_faults
        self._loop = loop
        self._on_line = on_line
        self.chance = chance
        self.is_calm = seed % CALM_EVERY == 0 and not only_faults
        self.is_disturbed = not self.is_calm
        self.is_crowded = is_crowded
        self.hedges = seed % HEDGES_EVERY == 1
        self.excuses: set[str] = set()
        self.slots_are_known = True
        self.network = Network(Random(chance.random()))
        self.tables = Tables(self.unix_now)
        self.queues = Queues(self.network, Random(chance.random()))
        self.credentials = Credentials()
        self.checks = Checks(self)
        self.log = SimulatedLog(self.tables, self.unix_now, self._on_commit)
        self.machines: list[Machine] = []
        self.gateway_names: list[str] = []
        self.scheduler_names: list[str] = []
        self._gateways: dict[str, SimulatedGateway] = {}
        self._schedulers: dict[str, SimulatedScheduler] = {}
        self.fault_kinds: tuple[str, ...] = ()

    # --- the world ---------------------------------------------------------------------------------------------------

    def unix_now(self) -> float:
        return BEGINNING + self._loop.now

    def wall_clock(self) -> datetime:
        return datetime.fromtimestamp(self.unix_now(), UTC)

    def trace(self, who: str, what: str) -> None:
        self._on_line(f"{self._loop.now:10.4f} {who}: {what}")

    def _on_commit(self, written: Written) -> None:
        for event in written.events:
            why = getattr(event, "reason", "")
            self.trace("log", f"{event.TOPIC} of {event.correlation_id}{why and ' because of ' + why}")
        self.checks.committed(written)

    def gateway_at(self, name: str) -> SimulatedGateway | None:
        return self._gateways.get(name)

    def any_open_gateway(self, chance: Random, name: str = "") -> SimulatedGateway | None:
        """What a load balancer would say."""
        found = [
            one for one in self._gateways.values() if one.open and not (name and self.network.is_cut(name, one.name))
        ]
        return chance.choice(found) if found else None

    def start_gateway(self, name: str) -> None:
        skew = 0.0 if self.is_calm else self.chance.uniform(-CLOCK_SKEW_SECONDS, CLOCK_SKEW_SECONDS)
        self.kill_gateway(name)
        self._gateways[name] = SimulatedGateway(self, name, clock_skew_seconds=skew)
        self._gateways[name].start()

    def kill_gateway(self, name: str) -> None:
        if name in self._gateways:
            self._gateways[name].kill()

    def start_scheduler(self, name: str) -> None:
        skew = 0.0 if self.is_calm else self.chance.uniform(-CLOCK_SKEW_SECONDS, CLOCK_SKEW_SECONDS)
        self.kill_scheduler(name)
        self._schedulers[name] = SimulatedScheduler(self, name, clock_skew_seconds=skew)
        self._schedulers[name].start()

    def kill_scheduler(self, name: str) -> None:
        if name in self._schedulers:
            self._schedulers[name].kill()

    def revive_gateway(self, name: str) -> None:
        """Start it unless it runs."""
        if not self._gateways[name].process.alive:
            self.start_gateway(name)

    def revive_scheduler(self, name: str) -> None:
        if not self._schedulers[name].process.alive:
            self.start_scheduler(name)

    @staticmethod
    def machine_id_of(machine: Machine) -> str:
        return machine_id_of(machine.name.encode())

    # --- a run -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._open_for_business()
        await asyncio.sleep(1.0)
        watching = asyncio.create_task(self._watch())
        plan = [] if self.is_calm else faults.plan_of(self.chance, self._only_faults)
        self.fault_kinds = tuple(sorted({fault.kind for fault in plan}))
        going_wrong = [
            asyncio.create_task(faults.carry_out(self, fault, Random(self.chance.random()))) for fault in plan
        ]
        asking = self._consumers()
        await asyncio.sleep(TRAFFIC_SECONDS)
        await asyncio.gather(*going_wrong)
        self._repair()
        await asyncio.gather(*asking, asyncio.sleep(SETTLING_SECONDS))
        await self._until_healed()
        await self._probe()
        await self._until_healed()
        self.checks.check_what_was_told()
        self.checks.after_step()
        watching.cancel()

    def _open_for_business(self) -> None:
        chance = self.chance
        for number in range(chance.randint(1, 3)):
            self.gateway_names.append(f"gateway-{number}")
            self.start_gateway(f"gateway-{number}")
        for number in range(2 if self.is_crowded else chance.randint(1, 2)):
            self.scheduler_names.append(f"scheduler-{number}")
            self.start_scheduler(f"scheduler-{number}")
        machines, slots = (2, 1) if self.is_crowded else (chance.randint(2, 6), 3)
        for number in range(machines):
            models = {rules.SMALL: chance.randint(1, slots)}
            if number == 0 or chance.random() < 0.5:
                models[rules.LARGE] = chance.randint(1, 2)
            owner = "" if chance.random() < 0.2 else f"owner-{number % 3}"
            tps = 15.0 if self.is_crowded else chance.choice((15.0, 30.0, 60.0, 120.0))
            machine = Machine(
                self,
                f"mac-{number}",
                account_id=owner,
                models=models,
                tps=tps,
                chance=Random(chance.random()),
                private_only=number > 0 and chance.random() < 0.2,
                genuine=number == 0 or chance.random() < 0.8,
            )
            self.machines.append(machine)
            machine.start()

    def _consumers(self) -> list[asyncio.Task[None]]:
        asking = []
        accounts = self.chance.randint(2, 4)
        for number in range(accounts):
            owns_machines = number > 0 and self.chance.random() < 0.5
            account_id = f"owner-{number}" if owns_machines else f"consumer-{number}"
            routes = ("", "self", "prefer") if owns_machines else ("", "", "", "prefer")
            poor = self.chance.random() < 0.15
            self.log.write(
                [
                    GrantCredit(
                        account_id=account_id,
                        amount_micro_usd=500 if poor else CREDIT_MICRO_USD,
                        reference=f"grant-{number}",
                    )
                ]
            )
            for key in range(2):
                self.credentials.add(f"key-{number}-{key}", account_id)
            asks = self.chance.randint(15, 40) if number == 0 else self.chance.randint(3, 12)
            at = self.chance.uniform(0.0, 10.0)
            for turn in range(asks):
                pauses = not self.is_crowded and self.chance.random() < 0.3
                at += self.chance.expovariate(1.5) if pauses else self.chance.uniform(0.0, 0.1)
                key = f"key-{number}-{self.chance.randint(0, 1)}"
                wish = wish_of(
                    self.chance,
                    f"{account_id}#{turn}",
                    key,
                    [rules.SMALL, rules.LARGE],
                    calm=self.is_calm,
                    routes=routes,
                )
                asking.append(
                    asyncio.create_task(self._ask(min(at, TRAFFIC_SECONDS), wish, Random(self.chance.random())))
                )
        return asking

    async def _ask(self, at: float, wish: Wish, chance: Random) -> None:
        await asyncio.sleep(at)
        gateway = self.any_open_gateway(chance)
        if gateway is not None:
            self.checks.told.append(await ask(self, gateway, wish))

    def _repair(self) -> None:
        """Nothing breaks any more. What runs is left as it is."""
        self.trace("market", "nothing breaks any more")
        self.is_disturbed = False
        self.network.heal()
        self.queues.lost_share = self.queues.repeated_share = self.queues.late_share = 0.0
        for machine in self.machines:
            machine.get_into("well")
            if not machine.process.alive:
                machine.start()
        for name in self.gateway_names:
            self.revive_gateway(name)
        for name in self.scheduler_names:
            self.revive_scheduler(name)

    async def _until_healed(self) -> None:
        for _ in range(HEALING_SECONDS):
            if not self.checks.what_is_left():
                return
            await asyncio.sleep(1.0)
        self.checks.report("not healed: " + "; ".join(self.checks.what_is_left()[:3]))
        self.checks.after_step()

    async def _probe(self) -> None:
        """Once it has healed, everybody is served everywhere."""
        self.log.write([GrantCredit(account_id="probe", amount_micro_usd=CREDIT_MICRO_USD, reference="grant-probe")])
        self.credentials.add("key-probe", "probe")
        for name in self.gateway_names:
            for model in (rules.SMALL, rules.LARGE):
                wish = Wish(f"probe-{name}-{model}", "key-probe", model, True, 100, 20, PATIENT_SECONDS, 0.0)
                gateway = self.gateway_at(name)
                assert gateway is not None
                told = await ask(self, gateway, wish)
                if not told.whole:
                    self.checks.report(f"{wish.name} was told {told.status} {told.error}")
                self.checks.told.append(told)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.checks.watch()


def run(
    seed: int,
    *,
    only_faults: Sequence[str] = (),
    is_crowded: bool = False,
    on_line: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """One run of the market. ``only_faults`` are the kinds of faults that may happen, all when it is empty;
    ``is_crowded`` makes it one of few slots on slow machines, for which everybody asks at once; ``on_line`` gets the
    whole trace."""
    is_over = False
    digest, last_lines = hashlib.sha256(), deque[str](maxlen=LAST_LINES)

    def write(line: str) -> None:
        if is_over:
            return
        digest.update(line.encode() + b"\n")
        last_lines.append(line)
        on_line(line)

    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    loop.set_task_factory(task_factory)  # type: ignore[arg-type]
    broken, market = "", None
    with world_of(seed, loop) as chance:

        async def open_market() -> None:
            nonlocal market
            market = Market(seed, loop, chance, write, only_faults, is_crowded=is_crowded)
            loop.after_step = market.checks.after_step
            loop.set_exception_handler(lambda _, context: market.checks.report(_told_by(context)))
            await market.run()

        try:
            loop.run_until_complete(open_market())
        except (Broken, NothingLeftToDo) as problem:
            broken = f"{type(problem).__name__}: {problem}"
        except Exception as problem:
            broken = _told_by({"message": "the simulation failed", "exception": problem})
        finally:
            is_over = True
            loop.after_step = lambda: None
            loop.set_exception_handler(lambda _, context: None)
            _end(loop)
            logging.disable(logging.NOTSET)
    assert market is not None
    told = market.checks.told
    return Outcome(
        seed=seed,
        digest=digest.hexdigest(),
        broken=broken,
        last_lines=list(last_lines),
        requests=len(told),
        answered=sum(one.whole for one in told),
        hedges=market.checks.hedges.total(),
        events=len(market.log.memory.log),
        virtual_seconds=loop.now,
        fault_kinds=market.fault_kinds,
    )


def _told_by(context: dict[str, Any]) -> str:
    error = context.get("exception")
    frames = traceback.extract_tb(error.__traceback__)[-4:] if error else ()
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{context['message']}: {error!r} at {places}"


def _end(loop: VirtualLoop) -> None:
    """Let go of everything that still runs."""
    for _ in range(20):
        left = asyncio.all_tasks(loop)
        if not left:
            return
        for task in left:
            task.cancel()
        with suppress(Exception, asyncio.CancelledError):
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
