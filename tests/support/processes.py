"""Real processes of the product, started and stopped by tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx
import psycopg

from adapters.postgres import credentials
from adapters.postgres.embedded import running_dsn
from adapters.postgres.writer import LedgerWriter
from domain.ledger import GrantCredit, OpenAccount
from projections.balances import Balances
from projections.open_requests import OpenRequests
from projections.usage import UsageEntries

T = TypeVar("T")

READY_SECONDS_MAX = 90.0


def eventually(look: Callable[[], T | None], what: str, seconds: float = READY_SECONDS_MAX) -> T:
    """Look until there is something to see; fail when there is nothing in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


class Process:
    """A child process with its output in files."""

    def __init__(self, name: str, command: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.out_path = folder / f"{name}.out"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DARKBLOOM_")}
        with self.log_path.open("ab") as log, self.out_path.open("wb") as out:
            self.popen = subprocess.Popen(
                command,
                stdout=out,
                stderr=log,
                env=clean | {"PYTHONUNBUFFERED": "1", "DARKBLOOM_LOG": "debug"} | (env or {}),
                start_new_session=True,
            )

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") + self.out_path.read_text(errors="replace")

    def ready_line(self) -> str:
        """The first line on stdout."""

        def look() -> str | None:
            assert self.popen.poll() is None, f"{self.name} ended with {self.popen.returncode}:\n{self.log()[-3000:]}"
            line, newline, _ = self.out_path.read_text().partition("\n")
            return line if newline else None

        return eventually(look, f"{self.name} to be ready")

    def kill_9(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def terminate(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(40)
        except subprocess.TimeoutExpired:
            self.kill_9()
            raise AssertionError(f"{self.name} did not stop:\n{self.log()[-3000:]}") from None


class Key(NamedTuple):
    secret: str
    key_id: str
    account_id: str


class Books:
    """What a test asks the database directly."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement.encode(), parameters).fetchall()

    def value(self, statement: str, *parameters: object) -> object:
        return self.rows(statement, *parameters)[0][0]

    def open_account(self, credit_micro_usd: int) -> Key:
        """A new account with credit and a key."""
        writer = LedgerWriter(self.dsn, [Balances(), UsageEntries(), OpenRequests()])
        writer.start()
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                account_id = f"acct_{os.urandom(6).hex()}"
                writer.execute(OpenAccount(account_id=account_id))
                if credit_micro_usd:
                    writer.execute(
                        GrantCredit(account_id=account_id, amount_micro_usd=credit_micro_usd, reference=account_id)
                    )
                key = credentials.create_api_key(connection, account_id, "test")
        finally:
            writer.stop()
        return Key(key.secret, key.key_id, account_id)

    def balance(self, account_id: str) -> tuple[object, ...]:
        """(balance, withdrawable, held)"""
        return self.rows(
            "SELECT balance_micro_usd, withdrawable_micro_usd, held_micro_usd FROM wallet_balances"
            " WHERE account_id = %s",
            account_id,
        )[0]

    def ends_of(self, account_id: str) -> list[str]:
        """The topics of all ends of an account's requests, in order."""
        return [
            str(row[0]).rpartition(".")[2]
            for row in self.rows(
                "SELECT topic FROM events WHERE topic IN ('InferenceRequest.RequestSettled',"
                " 'InferenceRequest.RequestReleased') AND convert_from(state, 'UTF8')::jsonb ->> 'account_id' = %s"
                " ORDER BY position",
                account_id,
            )
        ]

    def require_balanced(self) -> None:
        """Every journal entry sums to zero, every wallet equals its accounts, nothing is below zero."""
        unbalanced = self.rows(
            "SELECT position FROM (SELECT e.position, sum((p ->> 'amount')::bigint * CASE p ->> 'direction'"
            " WHEN 'debit' THEN 1 ELSE -1 END) AS difference FROM events e,"
            " jsonb_array_elements(convert_from(e.state, 'UTF8')::jsonb -> 'postings') p"
            " WHERE e.topic = 'JournalEntry.JournalEntryPosted' GROUP BY e.position) s"
            " WHERE difference <> 0"
        )
        assert not unbalanced
        wrong = self.rows(
            "WITH posted AS (SELECT p ->> 'sub_account' AS account_id, sum((p ->> 'amount')::bigint * CASE"
            " p ->> 'direction' WHEN 'credit' THEN 1 ELSE -1 END) AS amount FROM events e, jsonb_array_elements("
            " convert_from(e.state, 'UTF8')::jsonb -> 'postings') p WHERE e.topic = 'JournalEntry.JournalEntryPosted'"
            " AND p ->> 'account_code' IN ('2000', '2005', '2100', '2110', '2120') GROUP BY 1)"
            " SELECT w.account_id FROM wallet_balances w LEFT JOIN posted USING (account_id)"
            " WHERE w.balance_micro_usd + w.held_micro_usd <> coalesce(posted.amount, 0)"
        )
        assert not wrong


class Coordinator:
    """A running ``darkbloomd up`` (or ``serve``)."""

    def __init__(self, process: Process, dsn: str) -> None:
        line = process.ready_line()
        self.url = next(word.rstrip(",") for word in line.split() if word.startswith("http://"))
        self.process = process
        self.books = Books(dsn or "")

    def client(self, key: str = "") -> httpx.Client:
        """An HTTP client with a key, or without any."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0)

    def models(self, key: str) -> list[str]:
        with self.client(key) as client:
            return [entry["id"] for entry in client.get("/v1/models").json()["data"]]


def darkbloomd(*words: str) -> list[str]:
    return [sys.executable, "-m", "api.cli", *words]


@contextlib.contextmanager
def coordinator(
    folder: Path, *, database: str = "", port: int = 0, env: dict[str, str] | None = None
) -> Generator[Coordinator, None, None]:
    """``darkbloomd up``, on a free port unless one is named: on a given database, or with its own in ``folder``."""
    data_dir = folder / "data"
    extra = dict(env or {})
    if database:
        extra["DARKBLOOM_DATABASE_URL"] = database
    process = Process("up", darkbloomd("up", "--port", str(port), "--data-dir", str(data_dir)), folder, extra)
    try:
        process.ready_line()
        yield Coordinator(process, database or running_dsn(data_dir) or "")
    finally:
        if process.popen.poll() is None:
            process.terminate()


@contextlib.contextmanager
def agent(
    folder: Path, url: str, model: Path, env: dict[str, str] | None = None, *, module: str = "agent"
) -> Generator[Process, None, None]:
    """A real agent; it may not be connected yet. ``module`` is what runs it."""
    home = folder / "agent-home"
    home.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", module, "serve", "--coordinator", url, "--model", str(model)]
    process = Process("agent", command, folder, {"DARKBLOOM_HOME": str(home)} | (env or {}))
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.terminate()
