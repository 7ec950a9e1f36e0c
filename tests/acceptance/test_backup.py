"""The page on backups, with its own commands: what is restored is whole, and a coordinator goes on from there."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID

import psycopg

from tests.conftest import database_url, missing_service
from tests.support.ledger_commands import admit, grant, settled_request
from tests.support.ledger_tables import assert_books_are_sound, head_of, open_requests
from tests.support.ledger_writers import running
from tests.support.processes import coordinator, eventually

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "back-up.md"
QUICK = {
    "DARKBLOOM_LEASE_SECONDS": "2",
    "DARKBLOOM_LEASE_RENEW_SECONDS": "0.5",
    "DARKBLOOM_LEASE_GRACE_SECONDS": "1",
    "DARKBLOOM_SWEEP_SECONDS": "0.5",
}


def commands_of(heading: str) -> str:
    """The shell commands of one section of the page, in their order."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(f"{heading}\n"))
    return "".join(re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))


def run(script: str, folder: Path, **variables: str) -> str:
    """Run commands of the page as a reader would, in one shell; the first that fails ends them."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DARKBLOOM_")}
    done = subprocess.run(
        ["sh", "-euxc", script],
        cwd=folder,
        env=clean | {"PATH": path, "HOME": str(folder)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def require_client_tools(url: str) -> None:
    found = shutil.which("pg_dump")
    if found is None:
        missing_service("pg_dump")
    assert found is not None
    version = int(re.findall(r"(\d+)\.", subprocess.check_output([found, "--version"], text=True))[0])
    with psycopg.connect(url) as connection:
        if version * 10_000 + 9_999 < connection.info.server_version:
            missing_service("a pg_dump as new as the server")


def open_a_hold(database: str, gateway_id: object, account_id: str) -> None:
    """A request that is open on a living gateway."""
    with running(database) as writer:
        writer.execute(grant(account_id, 10_000))
        settled_request(writer, account_id, hold=500, cost=200, provider="provider")
        writer.execute(admit(account_id, 700, gateway_id=UUID(str(gateway_id))))


def test_a_dump_of_a_running_coordinator_is_restored_and_goes_on(
    postgres_server: str, database: str, tmp_path: Path
) -> None:
    require_client_tools(postgres_server)
    name = f"darkbloom_test_{secrets.token_hex(6)}"
    restored = database_url(database, name)
    addresses = {"DARKBLOOM_DATABASE_URL": database, "RESTORED_DATABASE_URL": restored}
    stopping = threading.Event()

    def work() -> None:
        with running(database) as writer:
            while not stopping.is_set():
                writer.execute(grant("busy", 1))

    try:
        # Given a coordinator with an open request, and business that goes on during the dump
        with coordinator(tmp_path, database=database, env=QUICK) as original:
            open_a_hold(database, original.books.value("SELECT gateway_id FROM gateways"), "ada")
            thread = threading.Thread(target=work)
            thread.start()
            try:
                eventually(
                    lambda: original.books.balance("busy")[0] if _has(original.books.rows, "busy") else None, "work"
                )
                run(commands_of("Dump a database server"), tmp_path, **addresses)
                original_head = original.books.value("SELECT position FROM ledger_head")
                # When the dump is restored,
                script = commands_of("Restore a dump").replace("darkbloom_restored", name)
                said = run(script, tmp_path, **addresses)
            finally:
                stopping.set()
                thread.join()
            assert original.books.balance("ada") == (9_100, 0, 700)
        # then it is sound, and of one moment before,
        assert "the books are sound" in said
        with psycopg.connect(restored, autocommit=True) as look:
            assert 0 < head_of(look) <= int(str(original_head))
            assert len(open_requests(look)) == 1
            assert_books_are_sound(look)
        # and a coordinator on it ends the hold of the gateway that is gone, and takes new business.
        second = tmp_path / "second"
        second.mkdir()
        with coordinator(second, database=restored, env=QUICK) as after:
            eventually(lambda: after.books.balance("ada") == (9_800, 0, 0), "the hold to be released")
            key = after.books.open_account(1_000)
            with after.client(key.secret) as client:
                assert client.get("/v1/payments/balance").json()["balance_micro_usd"] == 1_000
        with psycopg.connect(restored, autocommit=True) as look:
            assert_books_are_sound(look)
    finally:
        with psycopg.connect(postgres_server, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _has(rows: object, account_id: str) -> bool:
    return bool(rows("SELECT 1 FROM wallet_balances WHERE account_id = %s", account_id))  # type: ignore[operator]


def test_a_copy_of_the_data_directory_is_complete(tmp_path: Path) -> None:
    # Given an embedded coordinator that stopped while a request was open
    home = tmp_path / "home" / ".darkbloom"
    home.mkdir(parents=True)
    with coordinator(home, env=QUICK) as original:
        open_a_hold(original.books.dsn, original.books.value("SELECT gateway_id FROM gateways"), "ada")
    (home / "data").rename(home / "coordinator")
    # When it is copied and checked with the page's commands,
    run(commands_of("Copy the data directory"), home.parent)
    checking = commands_of("Check a copy without touching the original").splitlines()
    said = run(checking[0], home.parent)
    assert "the books are sound" in said
    # then a coordinator on the copy ends the hold, and the original is as it was.
    copies = tmp_path / "copies"
    copies.mkdir()
    (home.parent / "coordinator-backup").rename(copies / "data")
    with coordinator(copies, env=QUICK) as after:
        eventually(lambda: after.books.balance("ada") == (9_800, 0, 0), "the hold to be released")
    assert "read " in run("darkbloomd audit doctor", home.parent)
