"""What can go wrong, and a plan of it for one run.

A fault begins, lasts and is over. After the last one the market must heal by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.machine import Mood
from tests.simulation.network import BROKER, DATABASE

if TYPE_CHECKING:
    from tests.simulation.market import Market

FAULTS_UNTIL = 45.0


class Fault(NamedTuple):
    at: float
    kind: str
    seconds: float


async def machine_crashes(market: Market, chance: Random, seconds: float) -> None:
    machine = chance.choice(market.machines)
    market.trace("fault", f"{machine.name} crashes")
    machine.crash()
    await asyncio.sleep(seconds)
    if not machine.process.alive:
        machine.start()


async def machine_says_nothing(market: Market, chance: Random, seconds: float) -> None:
    await _get_into(market, chance, ("silent", "mute", "frozen"), seconds)


async def machine_fails(market: Market, chance: Random, seconds: float) -> None:
    await _get_into(market, chance, ("failing", "breaking", "slow"), seconds)


async def machine_breaks_the_rules(market: Market, chance: Random, seconds: float) -> None:
    await _get_into(market, chance, ("boasting", "leaking"), seconds)


async def _get_into(market: Market, chance: Random, moods: tuple[Mood, ...], seconds: float) -> None:
    machine, mood = chance.choice(market.machines), chance.choice(moods)
    market.trace("fault", f"{machine.name} is {mood}")
    market.excuses.add("machine in a mood")
    machine.get_into(mood)
    await asyncio.sleep(seconds)
    machine.get_into("well")


async def machine_is_disconnected(market: Market, chance: Random, seconds: float) -> None:
    machine = chance.choice(market.machines)
    market.trace("fault", f"{machine.name} loses its connection")
    machine.disconnect()


async def gateway_is_killed(market: Market, chance: Random, seconds: float) -> None:
    name = chance.choice(market.gateway_names)
    market.trace("fault", f"{name} is killed")
    market.excuses.add("gateway killed")
    market.kill_gateway(name)
    await asyncio.sleep(seconds)
    market.revive_gateway(name)


async def gateway_restarts_in_order(market: Market, chance: Random, seconds: float) -> None:
    name = chance.choice(market.gateway_names)
    gateway = market.gateway_at(name)
    if gateway is None or not gateway.open:
        return
    market.trace("fault", f"{name} restarts")
    await asyncio.wait([gateway.process.start(gateway.drain())])
    market.kill_gateway(name)
    market.start_gateway(name)


async def scheduler_is_killed(market: Market, chance: Random, seconds: float) -> None:
    name = chance.choice(market.scheduler_names)
    market.trace("fault", f"{name} is killed")
    market.kill_scheduler(name)
    await asyncio.sleep(seconds)
    market.revive_scheduler(name)


async def broker_misbehaves(market: Market, chance: Random, seconds: float) -> None:
    queues = market.queues
    market.trace("fault", "the broker loses, repeats and delays")
    queues.lost_share, queues.repeated_share, queues.late_share = chance.random() * 0.2, chance.random() * 0.5, 0.3
    await asyncio.sleep(seconds)
    queues.lost_share = queues.repeated_share = queues.late_share = 0.0


async def broker_is_purged(market: Market, chance: Random, seconds: float) -> None:
    market.trace("fault", "the broker is purged")
    market.queues.purge()


async def tables_are_truncated(market: Market, chance: Random, seconds: float) -> None:
    market.trace("fault", "the unlogged tables are lost")
    market.slots_are_known = False
    market.tables.truncate()


async def broker_is_cut_off(market: Market, chance: Random, seconds: float) -> None:
    await _cut(market, chance.choice(market.gateway_names), BROKER, seconds)


async def database_is_cut_off(market: Market, chance: Random, seconds: float) -> None:
    market.excuses.add("database cut off")
    await _cut(market, chance.choice([*market.gateway_names, *market.scheduler_names]), DATABASE, seconds)


async def gateways_are_cut_off(market: Market, chance: Random, seconds: float) -> None:
    others = [*market.gateway_names, *market.scheduler_names]
    await _cut(market, chance.choice(market.gateway_names), chance.choice(others), seconds)


async def machine_is_cut_off(market: Market, chance: Random, seconds: float) -> None:
    machine = chance.choice(market.machines)
    await _cut(market, machine.name, machine.gateway_name, seconds)


async def key_is_revoked(market: Market, chance: Random, seconds: float) -> None:
    if not market.credentials.keys():
        return
    key = chance.choice(market.credentials.keys())
    market.trace("fault", f"{key} is revoked")
    market.credentials.revoke(key)
    for name in market.gateway_names:
        gateway = market.gateway_at(name)
        if gateway is not None:
            asyncio.get_running_loop().call_later(market.network.delay(), gateway.hear_of_revocation, key)


async def _cut(market: Market, one: str, other: str, seconds: float) -> None:
    market.trace("fault", f"{one} and {other} do not hear each other")
    market.slots_are_known = False
    market.network.cut(one, other)
    await asyncio.sleep(seconds)
    market.network.heal()


KINDS: dict[str, Callable[[Market, Random, float], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        machine_crashes,
        machine_says_nothing,
        machine_fails,
        machine_breaks_the_rules,
        machine_is_disconnected,
        gateway_is_killed,
        gateway_restarts_in_order,
        scheduler_is_killed,
        broker_misbehaves,
        broker_is_purged,
        broker_is_cut_off,
        tables_are_truncated,
        database_is_cut_off,
        gateways_are_cut_off,
        machine_is_cut_off,
        key_is_revoked,
    )
}


def plan_of(chance: Random, only: Sequence[str]) -> list[Fault]:
    """A handful of faults of a few kinds, so that runs differ in character, or of none but the given ones."""
    kinds = only or chance.sample(list(KINDS), chance.randint(1, 4))
    faults = []
    for _ in range(chance.randint(1, 7)):
        at = chance.uniform(1.0, FAULTS_UNTIL - 10.0)
        seconds = min(chance.expovariate(1 / 5.0) + 0.2, FAULTS_UNTIL - at)
        faults.append(Fault(at, chance.choice(kinds), seconds))
    return sorted(faults)


async def carry_out(market: Market, fault: Fault, chance: Random) -> None:
    await asyncio.sleep(fault.at)
    await KINDS[fault.kind](market, chance, fault.seconds)
