"""``darkbloomd demo``: the whole system once, on this machine, from a paid question to a trial balance.

It starts a coordinator and an agent as any user would, asks through the official ``openai`` package, and then reads the
books. Everything that it started is stopped when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psycopg

from adapters.settings import Settings
from api import bootstrap
from domain import events
from domain.eventsourced import DomainEvent
from domain.journal import JournalEntryPosted
from domain.money import format_usd
from domain.requests import RequestSettled
from projections import earnings, journal

T = TypeVar("T")

READY_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0
PROVIDER_ACCOUNT = "acct_demo_provider"

HEX_DIGITS = 64
"""How long a hash is; one is shortened for the screen."""

LOG = "SELECT position, topic, recorded_at, state FROM events WHERE position > %s ORDER BY position"
HEAD = "SELECT position FROM ledger_head"
READ_TO = "SELECT min(position) FROM projection_tracking"

_SHOWN = {
    "HoldPlaced": ("amount", "purpose"),
    "RequestAdmitted": ("model", "prompt_bound", "output_bound", "reserved"),
    "JobDispatched": ("attempt", "machine_id", "provider_account_id"),
    "JobFailed": ("reason", "status_code"),
    "JobCompleted": ("prompt_tokens", "completion_tokens"),
    "RequestSettled": ("cost", "fee", "provider_amount"),
    "HoldCaptured": ("captured", "released"),
    "EarningCredited": ("account_id", "amount"),
}
"""The members of each event that tell its story; the rest is for auditors."""


class DemoFailed(Exception):
    """The demonstration could not be finished."""


class Process:
    """A child in a session of its own, so that Ctrl-C reaches only this program and it can stop things in order."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], log_path: Path) -> None:
        self.name = name
        self._log_path = log_path
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        threading.Thread(target=self._collect, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def first_line(self, seconds: float = READY_SECONDS_MAX) -> str:
        """What it says when it is ready."""
        return wait_for(self._next_line, f"{self.name} to start", self, seconds)

    def require_alive(self) -> None:
        if self._process.poll() is not None:
            tail = "\n".join(self._log_path.read_text(errors="replace").splitlines()[-10:])
            raise DemoFailed(f"{self.name} ended with code {self._process.returncode}:\n{tail}")

    def stop(self) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _next_line(self) -> str | None:
        return None if self._lines.empty() else self._lines.get()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())


class Recorded(NamedTuple):
    position: int
    topic: str
    recorded_at: str
    event: DomainEvent


def run_demo(prompt: str, model_path: Path) -> None:
    """Run the demonstration on the terminal.

    Raises:
        DemoFailed: with what to look at.
    """
    try:
        import openai
    except ImportError:
        raise DemoFailed("install the 'openai' package, through which the demonstration asks") from None
    if not (model_path / "config.json").is_file():
        raise DemoFailed(f"{model_path} is not a model folder; run this from the project's folder, or use --model-path")
    with _stopped_by_signals(), contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="darkbloom-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url, data_dir = coordinator_process(folder, stack)
        _say(f"A coordinator runs at {url}, in development mode.")
        token = command_output(data_dir, "provider-tokens", "create", "--account", PROVIDER_ACCOUNT)
        agent = agent_process(folder, url, model_path, stack, token)
        consumer = json.loads(command_output(data_dir, "keys", "create", "--credit", "5", "--json"))
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=consumer["api_key"], max_retries=0)
        wait_for(lambda: client.models.list().data or None, "the machine to be listed", agent)
        _say(f"A machine serves {model_path.name}. Balance before: {consumer['credit_usd']} USD.")

        with bootstrap.database_of_command(Settings(data_dir=data_dir)) as dsn, psycopg.connect(dsn) as connection:
            connection.autocommit = True
            (before,) = _row(connection, HEAD)
            _ask(client, model_path.name, prompt)
            _show_books(connection, before, client)


def coordinator_process(folder: Path, stack: contextlib.ExitStack) -> tuple[str, Path]:
    """Start ``darkbloomd up`` in a folder; returns its URL and its data directory. The stack stops it."""
    data_dir = folder / "coordinator"
    command = [sys.executable, "-m", "api.cli", "up", "--port", "0", "--data-dir", str(data_dir)]
    coordinator = Process("the coordinator", command, _environment(), folder / "coordinator.log")
    stack.callback(coordinator.stop)
    words = coordinator.first_line().split()
    return next(word.rstrip(",") for word in words if word.startswith("http://")), data_dir


def agent_process(
    folder: Path, url: str, model_path: Path, stack: contextlib.ExitStack, auth_token: str = ""
) -> Process:
    """Start ``darkbloom serve``, linked to an account when there is a token. The stack stops it."""
    home = folder / "agent"
    home.mkdir(mode=0o700)
    if auth_token:
        token_file = os.open(home / "auth_token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(token_file, "w") as file:
            file.write(auth_token)
    command = [sys.executable, "-m", "agent", "serve", "--coordinator", url, "--model", str(model_path)]
    agent = Process("the agent", command, _environment(DARKBLOOM_HOME=str(home)), folder / "agent.log")
    stack.callback(agent.stop)
    return agent


def _environment(**more: str) -> dict[str, str]:
    # The demonstration is about the defaults, whatever this shell is set up for.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKBLOOM_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def command_output(data_dir: Path, *words: str) -> str:
    """What a ``darkbloomd`` command prints.

    Raises:
        DemoFailed: with what it said.
    """
    command = [sys.executable, "-m", "api.cli", *words, "--data-dir", str(data_dir)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoFailed(f"'darkbloomd {' '.join(words)}' failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _ask(client: Any, model: str, prompt: str) -> None:
    _say(f"\nYou:     {prompt}")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=120,
        stream=True,
        stream_options={"include_usage": True},
    )
    _say("Answer:  ", end="")
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            _say(chunk.choices[0].delta.content, end="")
        if chunk.usage:
            _say(f"\n\n{chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} completion tokens.")


def _show_books(connection: psycopg.Connection[Any], before: int, client: Any) -> None:
    recorded = [
        Recorded(position, topic, at.strftime("%H:%M:%S.%f"), events.decode(topic, bytes(state)))
        for position, topic, at, state in connection.execute(LOG, (before,))
    ]
    settled = next((one.event for one in recorded if isinstance(one.event, RequestSettled)), None)
    if settled is None:
        raise DemoFailed("the request was not settled")
    _say("\nWhat the log says of this request:")
    for one in recorded:
        if one.event.correlation_id == settled.request_id:
            _say(f"  {one.position:>4}  {one.recorded_at}  {one.topic.rpartition('.')[2]:<18} {_facts(one.event)}")

    balance = client.get("/payments/balance", cast_to=object)
    _say(f"\nBalance after: {balance['balance_usd']} USD; the request cost {format_usd(settled.cost)} USD.")
    (head,) = _row(connection, HEAD)
    wait_for(lambda: True if _row(connection, READ_TO)[0] >= head else None, "the projections")
    earned, jobs = _row(connection, earnings.TOTAL_OF_MACHINE, (settled.machine_id,))
    owner = settled.provider_account_id or "nobody yet"
    _say(f"The machine earned {format_usd(earned)} USD in {jobs} job for {owner}: 100 % of the price.")
    _show_trial_balance(connection)


def _show_trial_balance(connection: psycopg.Connection[Any]) -> None:
    lines = journal.trial_balance(connection)
    _say("\nTrial balance (micro-USD):")
    for line in lines:
        _say(f"  {line.code}  {line.name:<32} {line.debit_micro_usd:>12,} {line.credit_micro_usd:>12,}")
    debit, credit = sum(line.debit_micro_usd for line in lines), sum(line.credit_micro_usd for line in lines)
    _say(f"  {'':<4}  {'Total':<32} {debit:>12,} {credit:>12,}   difference {debit - credit}")
    if debit != credit:
        raise DemoFailed("the books do not balance")


def _facts(event: DomainEvent) -> str:
    """What an event says, short enough for a line."""
    if isinstance(event, JournalEntryPosted):
        return "  ".join(f"{line.direction} {line.account_code} {line.amount}" for line in event.postings)
    facts = [(name, str(getattr(event, name))) for name in _SHOWN.get(type(event).__name__, ())]
    return "  ".join(f"{name} {value[:12] + '…' if len(value) == HEX_DIGITS else value}" for name, value in facts)


def _row(connection: psycopg.Connection[Any], statement: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return tuple(row)


def wait_for(
    look: Callable[[], T | None], what: str, process: Process | None = None, seconds: float = READY_SECONDS_MAX
) -> T:
    """Look until there is something to see.

    Raises:
        DemoFailed: nothing came in time, or the process that it was expected of ended.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        if process is not None:
            process.require_alive()
        time.sleep(0.05)
    raise DemoFailed(f"waited {seconds:.0f} s in vain for {what}")


@contextlib.contextmanager
def _stopped_by_signals() -> Generator[None, None, None]:
    """The first SIGINT or SIGTERM unwinds, so that everything is stopped; more of them do not disturb that."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> None:
        for signum in signals:
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [signal.signal(signum, interrupt) for signum in signals]
    try:
        yield
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()
