"""A market of real processes under load, and what breaks in it.

Two gateways, a scheduler, two agents with the tiny model, a RabbitMQ node of its own and one PostgreSQL. Consumers
prefer the gateway *near*, machines the gateway *far*. ``python -m tests.chaos.fleet`` runs a long campaign: faults in
an order that SEED decides, ROUNDS of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import httpx
import pika
import psycopg

from adapters.postgres import migrate
from adapters.scheduler.brokers import QUEUES
from projections.doctor import examine
from tests.conftest import POSTGRES_URL, database_url
from tests.support.balancer import Balancer, SilentProxy, is_ready
from tests.support.machine import MODEL
from tests.support.parts import Parts
from tests.support.processes import Books, Key, Process, eventually
from tests.support.rabbitmq import RabbitmqNode, free_port

TINY_MODEL = Path(__file__).parents[2] / "models" / MODEL
CREDIT = 100_000_000
CONSUMERS = 4
ANSWER_SECONDS_MAX = 30.0
RETRIES_MAX = 40
HEAL_SECONDS_MAX = 60.0

LEASES = {
    "DARKBLOOM_LEASE_SECONDS": "4",
    "DARKBLOOM_LEASE_RENEW_SECONDS": "1",
    "DARKBLOOM_LEASE_GRACE_SECONDS": "1",
    "DARKBLOOM_FIRST_SIGNAL_SECONDS": "8",
    "DARKBLOOM_CANCEL_GRACE_SECONDS": "3",
    "DARKBLOOM_NO_PROVIDER_WAIT_SECONDS": "20",
    "DARKBLOOM_QUEUE_DEPTH_MAX": "100",
}


class Outcome(NamedTuple):
    """How one request went for its consumer. ``what`` is ``answered``, a status, or how the answer broke off."""

    what: str
    job_id: str
    repeats: int


class Crowd:
    """Consumers that ask all the time. Like the official packages they ask again when they are told to."""

    def __init__(self, url: str, key: Key) -> None:
        self.outcomes: list[Outcome] = []
        self._url = url
        self._key = key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.what == "answered"]

    @property
    def failures(self) -> Counter[str]:
        return Counter(outcome.what for outcome in self.outcomes if outcome.what != "answered")

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def until_answered(self, more: int, seconds: float = HEAL_SECONDS_MAX) -> None:
        """Wait until so many more requests were answered."""
        goal = len(self.answered) + more
        eventually(lambda: len(self.answered) >= goal, f"{more} answers after {self.failures}", seconds)

    async def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._key.secret}"}
        timeout = httpx.Timeout(ANSWER_SECONDS_MAX)
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=timeout) as client:
            await asyncio.gather(*(self._keep_asking(client, number) for number in range(CONSUMERS)))

    async def _keep_asking(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._stop.is_set():
            outcome = await self._ask(client, stream=number % 2 == 0)
            if outcome is not None:
                self.outcomes.append(outcome)
            await asyncio.sleep(0.05)

    async def _ask(self, client: httpx.AsyncClient, *, stream: bool) -> Outcome | None:
        """None when it was stopped before there was an answer."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is a hold?"}],
            "max_tokens": 12,
            "stream": stream,
        }
        for repeats in range(RETRIES_MAX):
            if self._stop.is_set():
                return None
            job_id = ""
            try:
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    job_id = answer.headers.get("X-Inference-Job-ID", "")
                    text = (await answer.aread()).decode()
            except httpx.ConnectError:
                await asyncio.sleep(0.25)  # nothing was asked yet
                continue
            except httpx.HTTPError as error:
                return Outcome(type(error).__name__, job_id, repeats)
            if answer.status_code in (429, 503) and "Retry-After" in answer.headers:
                await asyncio.sleep(min(0.5, float(answer.headers["Retry-After"])))
                continue
            if answer.status_code != 200:
                return Outcome(f"{answer.status_code} {_error_in(text)}", job_id, repeats)
            if stream and not text.rstrip().endswith("[DONE]"):
                return Outcome(f"stream ended: {_error_in(text)}", job_id, repeats)
            return Outcome("answered", job_id, repeats)
        return Outcome("gave up", "", repeats)


def _error_in(text: str) -> str:
    for line in reversed(text.replace("data: ", "").splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["error"]["message"])
    return "without a word"


class Market:
    def __init__(self, folder: Path, database: str) -> None:
        self.books = Books(database)
        self.node = RabbitmqNode(folder / "rabbitmq")
        self.database = SilentProxy(database)
        self.ports = {"near": free_port(), "far": free_port()}
        self.consumers = Balancer((self.ports["near"], self.ports["far"]))
        self.machines = Balancer((self.ports["far"], self.ports["near"]))
        self.parts = Parts(folder, database, self.node.url)
        self.parts.env |= LEASES
        self.running: dict[str, Process] = {}
        self._folder = folder

    @contextlib.contextmanager
    def open(self) -> Generator[Market, None, None]:
        with self.database, self.consumers, self.machines:
            self.node.start()
            try:
                for name in ("near", "far", "scheduler", "agent-1", "agent-2"):
                    self.start(name)
                self.key = self.books.open_account(CREDIT)
                self.until_served()
                yield self
            finally:
                self.database.speaking.set()
                for process in self.running.values():
                    with contextlib.suppress(ProcessLookupError):
                        process.popen.send_signal(signal.SIGCONT)
                self.parts.stop()
                self.node.stop()

    def start(self, name: str) -> None:
        """Start a process that does not run. Its log goes on where it ended."""
        match name:
            case "near" | "far":
                url = self.database.url if name == "near" else self.books.dsn
                env = {"DARKBLOOM_DATABASE_URL": url}
                self.running[name] = self.parts.start("serve", "--port", str(self.ports[name]), name=name, env=env)
            case "scheduler":
                self.running[name] = self.parts.start("schedule", name=name)
            case _:
                home = self._folder / f"{name}-home"
                home.mkdir(mode=0o700, exist_ok=True)
                where = ["--coordinator", self.machines.url, "--model", str(TINY_MODEL)]
                command = [sys.executable, "-m", "agent", "serve", *where]
                self.running[name] = self.parts.start(name=name, command=command, env={"DARKBLOOM_HOME": str(home)})

    def kill(self, name: str) -> None:
        self.running.pop(name).kill_9()

    def stop_in_order(self, name: str) -> None:
        process = self.running.pop(name)
        process.ready_line()  # one that only starts would simply end
        assert process.terminate() == 0, process.log()[-3000:]

    @contextlib.contextmanager
    def paused(self, name: str) -> Generator[None, None, None]:
        process = self.running[name].popen
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def crowd(self) -> Crowd:
        return Crowd(self.consumers.url, self.key)

    # --- what must be true -------------------------------------------------------------------------------------------

    def until_served(self) -> None:
        """Until both machines are routable and a request is answered."""
        eventually(self.is_whole, "both machines to be routable")
        with self.crowd() as crowd:
            crowd.until_answered(1)

    def routable(self) -> int:
        return int(str(self.books.value("SELECT count(*) FROM fleet WHERE routable")))

    def is_whole(self) -> bool:
        """Whether every part is there again: nobody who broke one thing may find another still broken."""
        ended = [name for name, process in self.running.items() if process.popen.poll() is not None]
        assert not ended, f"{ended} ended:\n{self.running[ended[0]].log()[-3000:]}"
        return self.routable() == 2 and all(map(is_ready, self.ports.values()))

    def seat_machines_far(self) -> None:
        """Have both machines connected to the gateway that the consumers do not use."""
        far = f"%:{self.ports['far']}"
        seated = "SELECT count(*) FROM fleet JOIN gateways USING (gateway_id) WHERE routable AND internal_url LIKE %s"
        if self.books.value(seated, far) != 2:
            for name in ("agent-1", "agent-2"):
                self.running.pop(name).terminate()
                eventually(lambda: self.routable() == 1, "the other agent to be alone")
                self.start(name)
                eventually(lambda: self.routable() == 2, "both machines to be routable")
        assert self.books.value(seated, far) == 2

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key.secret}"}
        return httpx.Client(base_url=self.consumers.url, headers=headers, timeout=ANSWER_SECONDS_MAX)

    def require_sound(self, crowd: Crowd) -> None:
        """Every request of the crowd ended once, and what was answered is paid."""
        self.require_books()
        paid = {str(row[0]) for row in self.books.rows("SELECT job_id FROM usage_entries")}
        unpaid = [outcome for outcome in crowd.answered if outcome.job_id not in paid]
        # A gateway that lost its lease in the middle of a settlement finds that others have ended the request.
        assert len(unpaid) <= self.parts.logs().count("but had been released before"), "an answer was not paid"

    def require_books(self) -> None:
        """Every request ended once, its hold came back, and nothing was paid but what the log says."""
        look = self.books.value
        for what in ("open_requests", "claims", "waiters"):
            eventually(lambda what=what: look(f"SELECT count(*) FROM {what}") == 0, f"no {what}", HEAL_SECONDS_MAX)
        admitted, settled, released, cost = self.books.rows(
            "SELECT count(*) FILTER (WHERE topic LIKE '%%RequestAdmitted'),"
            " count(*) FILTER (WHERE topic LIKE '%%RequestSettled'),"
            " count(*) FILTER (WHERE topic LIKE '%%RequestReleased'),"
            " coalesce(sum((convert_from(state, 'UTF8')::jsonb ->> 'cost')::bigint)"
            "   FILTER (WHERE topic LIKE '%%RequestSettled'), 0)::bigint"
            " FROM events WHERE topic LIKE 'InferenceRequest.%%'"
        )[0]
        assert admitted == int(str(settled)) + int(str(released))
        assert self.books.balance(self.key.account_id) == (CREDIT - int(str(cost)), 0, 0)
        with psycopg.connect(self.books.dsn, autocommit=True) as connection:
            findings = [finding for finding in examine(connection).findings if finding.state == "violated"]
        assert not findings, findings
        self.books.require_balanced()


# --- what breaks -----------------------------------------------------------------------------------------------------


def kill_the_scheduler(market: Market, crowd: Crowd) -> None:
    market.kill("scheduler")
    time.sleep(1.0)
    market.start("scheduler")


def kill_the_gateway_of_the_consumers(market: Market, crowd: Crowd) -> None:
    market.kill("near")
    crowd.until_answered(2)
    market.start("near")


def kill_the_gateway_of_the_machines(market: Market, crowd: Crowd) -> None:
    market.seat_machines_far()
    market.kill("far")
    crowd.until_answered(2)
    market.start("far")


def kill_an_agent(market: Market, crowd: Crowd) -> None:
    market.kill("agent-1")
    crowd.until_answered(2)
    market.start("agent-1")


def pause_an_agent(market: Market, crowd: Crowd) -> None:
    with market.paused("agent-2"):
        crowd.until_answered(2)
        time.sleep(4.0)


def pause_the_gateway_of_the_consumers(market: Market, crowd: Crowd) -> None:
    """For longer than its lease stands, so that its requests are ended by others."""
    with market.paused("near"):
        time.sleep(7.0)


def pause_the_gateway_of_the_machines(market: Market, crowd: Crowd) -> None:
    market.seat_machines_far()
    with market.paused("far"):
        time.sleep(7.0)


def restart_the_broker(market: Market, crowd: Crowd) -> None:
    market.node.stop()
    market.node.start()


def purge_the_queues(market: Market, crowd: Crowd) -> None:
    channel = pika.BlockingConnection(pika.URLParameters(market.node.url)).channel()
    for _ in range(20):
        for queue in QUEUES:
            for name in (queue, f"{queue}.DQ"):
                channel.queue_purge(name)
        time.sleep(0.05)
    channel.connection.close()


def truncate_the_fleet(market: Market, crowd: Crowd) -> None:
    for table in ("fleet", "fleet_models", "claims", "waiters", "model_demand"):
        market.books.rows(f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone")


def split_a_gateway_from_the_database(market: Market, crowd: Crowd) -> None:
    market.database.speaking.clear()
    try:
        time.sleep(7.0)
    finally:
        market.database.speaking.set()


def cut_a_gateway_from_the_database(market: Market, crowd: Crowd) -> None:
    for _ in range(5):
        market.database.cut_all()
        time.sleep(0.3)


def restart_everything_in_turn(market: Market, crowd: Crowd) -> None:
    """The one after which no request may have failed."""
    before = crowd.failures
    for name in ("near", "far", "scheduler"):
        market.stop_in_order(name)
        market.start(name)
        crowd.until_answered(4)
        if name != "scheduler":
            market.running[name].ready_line()
    assert crowd.failures == before, f"requests failed: {crowd.failures}"


Fault = Callable[[Market, Crowd], None]

FAULTS: Sequence[Fault] = (
    kill_the_scheduler,
    kill_the_gateway_of_the_consumers,
    kill_the_gateway_of_the_machines,
    kill_an_agent,
    pause_an_agent,
    restart_the_broker,
    purge_the_queues,
    truncate_the_fleet,
    restart_everything_in_turn,
)

LONGER_FAULTS: Sequence[Fault] = (
    pause_the_gateway_of_the_consumers,
    pause_the_gateway_of_the_machines,
    split_a_gateway_from_the_database,
    cut_a_gateway_from_the_database,
)
"""Those that only a campaign takes the time for."""


def suffer(market: Market, fault: Fault) -> Crowd:
    """Let something break under load, and require that nothing is lost and everything heals by itself."""
    with market.crowd() as crowd:
        crowd.until_answered(4)
        fault(market, crowd)
        crowd.until_answered(8)
        eventually(market.is_whole, "every part to be back", HEAL_SECONDS_MAX)
    market.require_sound(crowd)
    return crowd


def faults(seed: int) -> Generator[Fault, None, None]:
    """All of them in an order that the seed decides, then again in another one, without end."""
    chance = random.Random(seed)
    while True:
        yield from chance.sample([*FAULTS, *LONGER_FAULTS], len(FAULTS) + len(LONGER_FAULTS))


def campaign(seed: int, rounds: int) -> None:
    name = f"darkbloom_chaos_{secrets.token_hex(4)}"
    answered, failures, began = 0, Counter[str](), time.monotonic()
    with psycopg.connect(POSTGRES_URL, autocommit=True) as admin, tempfile.TemporaryDirectory() as folder:
        admin.execute(f'CREATE DATABASE "{name}"')
        url = database_url(POSTGRES_URL, name)
        migrate.upgrade(url)
        try:
            with Market(Path(folder), url).open() as market:
                for number, fault in enumerate(islice(faults(seed), rounds), start=1):
                    started = time.monotonic()
                    crowd = suffer(market, fault)
                    answered, failures = answered + len(crowd.answered), failures + crowd.failures
                    print(
                        f"{number:4} {fault.__name__:40} {time.monotonic() - started:5.1f} s, "
                        f"{len(crowd.answered)} answered, {dict(crowd.failures)}",
                        flush=True,
                    )
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    print(f"{rounds} faults in {time.monotonic() - began:.0f} s: {answered} requests answered, every one paid")
    for what, count in failures.most_common():
        print(f"{count:5} × {what}")


def main() -> None:
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    print(f"seed {seed}", flush=True)
    campaign(seed, int(os.environ.get("ROUNDS") or 26))


if __name__ == "__main__":
    main()
