"""What routing is worth: the first word and the answers of the product's choice, against three simpler ones.

A simulated hour of a network in one thread, for each of some seeds and four times with the same requests: once as
``domain.routing`` chooses, once at random, once in turn, once for the machine with the fewest requests. All four see
the same machines through the same gates, wait in the same queue, and may try a failed request twice more elsewhere.
What a policy may know it knows as late as in the product: what it dispatched itself at once, everything else with a
heartbeat every five seconds.

The machines are Macs from an M1 to an M3 Ultra. They hold some of their models in memory and load others when they are
asked for them; they read prompts one after another, answer several requests at once and each one slower the more there
are; their owners use them too. Now and then one fails whatever it is asked. Requests come in bursts, for models and
from lengths of few that are frequent and many that are rare. A consumer who sees no first word within a minute leaves.

``ttft_p95_ms_…`` is the time to the first word, from the request to the consumer; one who left counts with the minute.
``completed_…`` are whole answers.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

import msgspec

from benchmarks.databases import show
from domain.routing import (
    Candidate,
    Demand,
    Health,
    Load,
    Observation,
    Policy,
    SlotState,
    Snapshot,
    breaker_state,
    choose,
    observe,
    reasons_against,
)

POLICY = Policy(development=True, minimum_trust="none", challenge_age_seconds_max=1e9)
HOUR_SECONDS = 3_600.0
PATIENCE_SECONDS = 60.0
QUEUE_SECONDS_MAX = 120.0
ATTEMPTS_MAX = 3
HEARTBEAT_SECONDS = 5.0
NETWORK_SECONDS = 0.03
LOADING_GB_PER_SECOND = 3.0
BATCH_SLOWDOWN = 0.3
"""By so much of itself each further request makes an answer slower, which no policy is told exactly."""

PREFILL_SHARE = 0.5
"""How fast answers go on while the machine reads a prompt."""


class Chip(NamedTuple):
    """Memory bandwidth in GB/s, tokens a second of an 8 GB model generated and read, memory in GB, how frequent."""

    name: str
    bandwidth_gbs: float
    decode_tps: float
    prefill_tps: float
    memory_gb: tuple[float, ...]
    weight: int


CHIPS = (
    Chip("Apple M1", 68, 8, 110, (16,), 6),
    Chip("Apple M1 Pro", 200, 22, 230, (16, 32), 4),
    Chip("Apple M1 Max", 400, 40, 430, (32, 64), 3),
    Chip("Apple M2", 100, 11, 160, (16, 24), 5),
    Chip("Apple M2 Max", 400, 42, 560, (32, 64, 96), 3),
    Chip("Apple M3 Pro", 150, 17, 300, (18, 36), 4),
    Chip("Apple M3 Max", 400, 44, 660, (48, 64, 128), 3),
    Chip("Apple M4", 120, 14, 220, (16, 24, 32), 5),
    Chip("Apple M4 Max", 546, 62, 900, (48, 64, 128), 4),
    Chip("Apple M2 Ultra", 800, 78, 1_050, (192,), 1),
    Chip("Apple M3 Ultra", 819, 82, 1_400, (256, 512), 1),
)


class Model(NamedTuple):
    """``active_gb`` is what each token reads of it."""

    id: str
    size_gb: float
    active_gb: float


MODELS = (
    Model("8b-8bit", 8.5, 8.5),
    Model("4b-8bit", 4.5, 4.5),
    Model("26b-a4b-8bit", 28.0, 4.5),
    Model("27b-8bit", 27.0, 27.0),
    Model("122b-a10b-8bit", 122.0, 10.0),
)
"""In the order of their demand, which follows Zipf's law with an exponent of 1.2."""


@dataclass
class Request:
    """``output_tokens`` is how long the answer will be, ``limit`` what routing is told of it."""

    number: int
    at: float
    model: Model
    prompt_tokens: int
    output_tokens: int
    limit: int
    attempts: int = 0
    excluded: set[str] = field(default_factory=set)
    first_word_at: float | None = None
    is_over: bool = False
    is_completed: bool = False


@dataclass
class Job:
    request: Request
    remaining_tokens: float
    reading: bool = True


class Mac:
    """A machine as it is. ``snapshot`` is what it last told of itself."""

    def __init__(self, number: int, chip: Chip, chance: Random) -> None:
        self.id = f"mac-{number}"
        self.memory_gb = chance.choice(chip.memory_gb)
        self.capacity = 2 if self.memory_gb <= 24 else 4 if self.memory_gb <= 48 else 6 if self.memory_gb <= 96 else 8
        self.health = Health()
        self.jobs: list[Job] = []
        self.owner_share = 0.0
        self.fails_until = 0.0
        self.version = 0
        self.advanced_at = 0.0
        self.busy_until = 0.0
        self._chip = chip
        self._decode_tps = chip.decode_tps * chance.uniform(0.85, 1.1)
        self._prefill_tps = chip.prefill_tps * chance.uniform(0.85, 1.1)
        fitting = [one for one in MODELS if one.size_gb <= 0.7 * self.memory_gb]
        offered = len(fitting) if self.memory_gb >= 128 else min(len(fitting), chance.randint(1, 3))
        self.models = {one.id: one for one in chance.sample(fitting, offered)}
        self.loaded: list[Model] = []
        for one in sorted(self.models.values(), key=lambda _: chance.random()):
            if self._used_gb() + one.size_gb <= 0.75 * self.memory_gb:
                self.loaded.append(one)
        self.snapshot = self.look(0.0)

    def fail_until(self, when: float) -> None:
        self.fails_until = when

    def _used_gb(self) -> float:
        return sum(one.size_gb for one in self.loaded)

    @property
    def speed(self) -> float:
        """What its owner leaves of it."""
        return 1.0 - 0.6 * self.owner_share

    def decode_tps(self, model: Model, at_once: int) -> float:
        return self._decode_tps * self.speed * 8.0 / model.active_gb / (1 + BATCH_SLOWDOWN * (at_once - 1))

    def reading_seconds(self, request: Request) -> float:
        return request.prompt_tokens / (self._prefill_tps * self.speed * 8.0 / request.model.active_gb)

    def load(self, model: Model) -> float:
        """Make room for a model and load it; returns how long that takes, 0 when it is there."""
        if model in self.loaded:
            self.loaded.remove(model)
            self.loaded.append(model)
            return 0.0
        in_use = {job.request.model.id for job in self.jobs}
        for other in list(self.loaded):
            if self._used_gb() + model.size_gb > 0.9 * self.memory_gb and other.id not in in_use:
                self.loaded.remove(other)
        self.loaded.append(model)
        return model.size_gb / LOADING_GB_PER_SECOND

    def load_on(self, model: Model) -> Load:
        mine = [job.request for job in self.jobs if job.request.model is model]
        return Load(len(self.jobs), len(mine), sum(one.limit for one in mine))

    def look(self, now: float) -> Snapshot:
        slots = {}
        for name, model in self.models.items():
            running = [job for job in self.jobs if job.request.model is model]
            potential = sum(job.request.limit for job in running)
            state = "running" if model in self.loaded else "idle_shutdown"
            slots[name] = SlotState(state, len(running), 0, potential)
        return Snapshot(
            session_id=self.id,
            machine_id=self.id,
            gateway_id="gateway",
            account_id="",
            provider_key="key",
            trust_level="none",
            untrusted=False,
            draining=False,
            runtime_verified=False,
            private=True,
            challenge_passed_at=now,
            capacity=self.capacity,
            models={name: int(model.size_gb * 2**30) for name, model in self.models.items()},
            context_lengths={},
            slots=slots,
            decode_tps=self._decode_tps,
            prefill_tps=self._prefill_tps,
            memory_bandwidth_gbs=self._chip.bandwidth_gbs,
            memory_pressure=min(1.0, self._used_gb() / self.memory_gb + 0.3 * self.owner_share),
            cpu_usage=self.owner_share,
            thermal_state="serious" if self.owner_share > 0.8 else "fair" if self.owner_share > 0.5 else "nominal",
            gpu_memory_active_gb=self._used_gb(),
            total_memory_gb=self.memory_gb,
            chip=self._chip.name,
            machine_model="",
            signing_key="",
            quantization={},
        )


Choose = Callable[[Sequence[Candidate], Demand, float], str | None]
"""A policy: the session of one of the eligible candidates."""


class Ours:
    """The product's choice, with health and the circuit breaker."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance

    def __call__(self, candidates: Sequence[Candidate], demand: Demand, now: float) -> str | None:
        choice = choose(candidates, demand, POLICY, self._chance, now=now)
        if choice is None and all(breaker_state(one.health, now=now, policy=POLICY) != "closed" for one in candidates):
            asked = msgspec.structs.replace(demand, nobody_else=True)
            choice = choose(candidates, asked, POLICY, self._chance, now=now)
        return choice.candidate.snapshot.session_id if choice else None


class AnyEligible:
    """The simpler ones: the first by some order of all that pass the gates. They know nothing of health."""

    def __init__(self, order: Callable[[Candidate], float]) -> None:
        self._order = order

    def __call__(self, candidates: Sequence[Candidate], demand: Demand, now: float) -> str | None:
        unknown = [msgspec.structs.replace(one, health=Health()) for one in candidates]
        eligible = [one for one in unknown if not reasons_against(one, demand, POLICY, now=now)]
        return min(eligible, key=self._order).snapshot.session_id if eligible else None


def _at_random(chance: Random) -> Choose:
    return AnyEligible(lambda _: chance.random())


def _in_turn(chance: Random) -> Choose:
    turns = itertools.count(1)
    asked_at: dict[str, int] = {}
    pick = AnyEligible(lambda one: asked_at.get(one.snapshot.session_id, 0))

    def next_one(candidates: Sequence[Candidate], demand: Demand, now: float) -> str | None:
        chosen = pick(candidates, demand, now)
        if chosen is not None:
            asked_at[chosen] = next(turns)
        return chosen

    return next_one


def _least_loaded(chance: Random) -> Choose:
    return AnyEligible(lambda one: one.load.requests_all + chance.random())


POLICIES: dict[str, Callable[[Random], Choose]] = {
    "ours": Ours,
    "random": _at_random,
    "round_robin": _in_turn,
    "least_loaded": _least_loaded,
}


def traffic(chance: Random, per_second: float) -> list[Request]:
    """An hour of requests: a quiet rate, and bursts of six times as many."""
    requests, at, burst_until = list[Request](), 0.0, 0.0
    weights = [1 / rank**1.2 for rank in range(1, len(MODELS) + 1)]
    while True:
        at += chance.expovariate(per_second * (3.0 if at < burst_until else 0.6))
        if at > HOUR_SECONDS:
            return requests
        if at > burst_until and chance.random() < 0.004:
            burst_until = at + chance.uniform(10.0, 60.0)
        output = min(2_048, max(4, int(chance.lognormvariate(math.log(160), 1.0))))
        limit = 256 if chance.random() < 0.6 else 2 ** math.ceil(math.log2(output + 1))
        requests.append(
            Request(
                number=len(requests),
                at=at,
                model=chance.choices(MODELS, weights)[0],
                prompt_tokens=min(8_000, max(8, int(chance.lognormvariate(math.log(350), 1.3)))),
                output_tokens=output,
                limit=limit,
            )
        )


class Network:
    """One policy's hour."""

    def __init__(self, seed: int, machines: int, choose_one: Choose, requests: list[Request]) -> None:
        fleet = Random(f"fleet {seed}")
        weights = [chip.weight for chip in CHIPS]
        chips = [*CHIPS, *fleet.choices(CHIPS, weights, k=max(0, machines - len(CHIPS)))]
        self._macs = {f"mac-{number}": Mac(number, chip, fleet) for number, chip in enumerate(chips)}
        self._choose = choose_one
        self._requests = requests
        self._waiting: dict[str, deque[Request]] = {one.id: deque() for one in MODELS}
        self._now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._plan_the_owners(Random(f"owners {seed}"))
        for request in requests:
            self._at(request.at, partial(self._ask, request))

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def _plan_the_owners(self, chance: Random) -> None:
        """When owners use their machines, when a machine fails, and the heartbeats."""
        for mac in self._macs.values():
            at = chance.uniform(0.0, 600.0)
            while at < HOUR_SECONDS:
                share = chance.choice((0.0, 0.0, 0.2, 0.4, 0.7, 0.95))
                self._at(at, partial(self._use, mac, share))
                at += chance.uniform(60.0, 900.0)
            if chance.random() < 0.08:
                begins, lasts = chance.uniform(0.0, HOUR_SECONDS), chance.uniform(60.0, 600.0)
                self._at(begins, partial(mac.fail_until, begins + lasts))
            at = chance.uniform(0.0, HEARTBEAT_SECONDS)
            while at < HOUR_SECONDS + QUEUE_SECONDS_MAX:
                self._at(at, partial(self._tell, mac))
                at += HEARTBEAT_SECONDS

    def run(self) -> None:
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()

    # --- the scheduler -----------------------------------------------------------------------------------------------

    def _ask(self, request: Request) -> None:
        self._at(request.at + PATIENCE_SECONDS, lambda: self._lose_patience(request))
        if not self._dispatch(request):
            self._waiting[request.model.id].append(request)

    def _lose_patience(self, request: Request) -> None:
        if request.first_word_at is not None or request.is_over:
            return
        request.is_over = True
        for mac in self._macs.values():
            for job in list(mac.jobs):
                if job.request is request:
                    self._advance(mac)
                    mac.jobs.remove(job)
                    self._plan(mac)
                    self._wake(mac)

    def _dispatch(self, request: Request) -> bool:
        model = request.model
        candidates = [
            Candidate(mac.snapshot, mac.load_on(model), mac.health)
            for mac in self._macs.values()
            if model.id in mac.models
        ]
        demand = Demand(
            model.id, request.prompt_tokens, request.limit, frozenset(request.excluded), size_gb=model.size_gb
        )
        chosen = self._choose(candidates, demand, self._now)
        if chosen is None:
            return False
        request.attempts += 1
        self._begin(self._macs[chosen], request)
        return True

    def _wake(self, mac: Mac) -> None:
        heads = [self._waiting[name] for name in mac.models if self._waiting[name]]
        for line in sorted(heads, key=lambda line: line[0].at):
            while line and (line[0].is_over or self._dispatch(line[0])):
                line.popleft()

    def _fail(self, mac: Mac, request: Request) -> None:
        mac.health = observe(mac.health, Observation("job_failed", self._now), POLICY)
        self._wake(mac)
        request.excluded.add(mac.id)
        if not request.is_over and (request.attempts >= ATTEMPTS_MAX or not self._dispatch(request)):
            request.is_over = True

    def _tell(self, mac: Mac) -> None:
        mac.snapshot = mac.look(self._now)
        self._wake(mac)

    # --- the machines ------------------------------------------------------------------------------------------------

    def _use(self, mac: Mac, share: float) -> None:
        self._advance(mac)
        mac.owner_share = share
        self._plan(mac)

    def _begin(self, mac: Mac, request: Request) -> None:
        self._advance(mac)
        job = Job(request, request.output_tokens)
        mac.jobs.append(job)
        if self._now < mac.fails_until:
            self._at(self._now + 2 * NETWORK_SECONDS, lambda: self._break(mac, job))
            return
        loading = mac.load(request.model)
        if loading:
            mac.snapshot = mac.look(self._now)
        begins = max(self._now + NETWORK_SECONDS, mac.busy_until)
        mac.busy_until = begins + loading + mac.reading_seconds(request)
        self._at(mac.busy_until, lambda: self._have_read(mac, job))
        self._plan(mac)

    def _break(self, mac: Mac, job: Job) -> None:
        if job in mac.jobs:
            mac.jobs.remove(job)
            self._fail(mac, job.request)

    def _have_read(self, mac: Mac, job: Job) -> None:
        if job not in mac.jobs:
            return
        self._advance(mac)
        job.reading = False
        first = self._now + NETWORK_SECONDS + 1 / mac.decode_tps(job.request.model, len(mac.jobs))
        job.request.first_word_at = first
        answer_ms = 1_000 * (first - job.request.at)
        mac.health = observe(mac.health, Observation("job_done", self._now, answer_ms), POLICY)
        self._plan(mac)

    def _rate(self, mac: Mac, job: Job) -> float:
        """Tokens a second of one answer now."""
        at_once = sum(not other.reading for other in mac.jobs)
        reading = PREFILL_SHARE if self._now < mac.busy_until else 1.0
        return reading * mac.decode_tps(job.request.model, at_once)

    def _advance(self, mac: Mac) -> None:
        """Let the answers be as long as they are by now."""
        seconds = self._now - mac.advanced_at
        for job in mac.jobs:
            if not job.reading:
                job.remaining_tokens -= seconds * self._rate(mac, job)
        mac.advanced_at = self._now

    def _plan(self, mac: Mac) -> None:
        """When the next answer is finished, as things stand."""
        mac.version += 1
        left = [job.remaining_tokens / self._rate(mac, job) for job in mac.jobs if not job.reading]
        if left:
            version = mac.version
            self._at(self._now + max(0.0, min(left)), lambda: self._finish(mac, version))

    def _finish(self, mac: Mac, version: int) -> None:
        if version != mac.version:
            return
        self._advance(mac)
        for job in [job for job in mac.jobs if not job.reading and job.remaining_tokens <= 1e-6]:
            mac.jobs.remove(job)
            job.request.is_over = job.request.is_completed = True
        self._plan(mac)
        self._wake(mac)


class Hour(NamedTuple):
    """Seconds to the first word of each request, and how many answers came to their end."""

    first_words: list[float]
    completed: int


def hour_of(name: str, seed: int, machines: int, per_second: float) -> Hour:
    requests = traffic(Random(f"traffic {seed}"), per_second)
    Network(seed, machines, POLICIES[name](Random(f"choice {seed}")), requests).run()
    first_words = [
        PATIENCE_SECONDS if one.first_word_at is None else min(PATIENCE_SECONDS, one.first_word_at - one.at)
        for one in requests
    ]
    return Hour(first_words, sum(one.is_completed for one in requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", type=int, default=3, help="hours, each with its own machines and requests")
    parser.add_argument("--machines", type=int, default=40)
    parser.add_argument("--requests-per-second", type=float, default=2.0)
    options = parser.parse_args()
    report: dict[str, float] = {}
    for name in POLICIES:
        hours = [hour_of(name, seed, options.machines, options.requests_per_second) for seed in range(options.seeds)]
        first_words = [1_000 * seconds for hour in hours for seconds in hour.first_words]
        report[f"ttft_p50_ms_{name}"] = round(statistics.median(first_words))
        report[f"ttft_p95_ms_{name}"] = round(statistics.quantiles(first_words, n=100)[94])
        report[f"completed_{name}"] = sum(hour.completed for hour in hours)
        report["requests"] = len(first_words)
    show(report, as_json=options.json)


if __name__ == "__main__":
    main()
