"""The transparency log over HTTP, from ``darkbloomd up`` with its own database and key."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import psycopg
import pytest

from adapters.crypto.notary import verify_ed25519
from adapters.postgres import credentials
from domain.transparency import checkpoint, note, proofs
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.leaf import LoggedEvent
from domain.transparency.note import VerifierKey
from domain.transparency.proofs import ConsistencyProof, InclusionProof
from tests.support.machine import MODEL, Machine
from tests.support.processes import Books, Coordinator, Key, Process, coordinator, darkbloomd, eventually

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "verify-the-log.md"


class Paid(NamedTuple):
    """A job, who paid for it, and who earned by it with which token."""

    job_id: str
    consumer: Key
    provider: Key
    token: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transparency")


@pytest.fixture(scope="module")
def embedded(folder: Path) -> Generator[Coordinator, None, None]:
    with coordinator(folder) as running:
        yield running


@pytest.fixture
async def paid(embedded: Coordinator) -> AsyncGenerator[Paid, None]:
    consumer, provider = embedded.books.open_account(1_000_000), embedded.books.open_account(0)
    with psycopg.connect(embedded.books.dsn, autocommit=True) as connection:
        token = credentials.create_provider_token(connection, provider.account_id)
    headers = {"Authorization": f"Bearer {consumer.secret}"}
    async with (
        Machine(embedded.url, auth_token=token).connected(),
        httpx.AsyncClient(base_url=embedded.url, headers=headers, timeout=60.0) as client,
    ):
        answer = await client.post("/v1/chat/completions", json=ASK)
        assert answer.status_code == 200
        yield Paid(answer.headers["X-Inference-Job-ID"], consumer, provider, token)


def keys_of(embedded: Coordinator) -> list[VerifierKey]:
    with embedded.client() as client:
        return [
            note.parse_verifier_key(entry["verifier_key"])
            for entry in client.get("/v1/transparency/keys").json()["keys"]
        ]


def checkpoint_of(embedded: Coordinator, size: int | None = None) -> Checkpoint:
    """A checkpoint as anybody gets it, with its signature checked."""
    with embedded.client() as client:
        answer = client.get("/v1/transparency/checkpoint", params={"size": size} if size else {})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    signed = note.parse(answer.text)
    assert note.verify(signed, keys_of(embedded), verify_ed25519)
    return checkpoint.read(signed)


def proven(embedded: Coordinator, credential: str, **asked: str | int) -> LoggedEvent:
    """The event that a proof shows, checked against a checkpoint that was fetched apart from it."""

    def look() -> httpx.Response | None:
        with embedded.client(credential) as client:
            answer = client.get("/v1/transparency/inclusion", params=asked)
        if answer.status_code == 409:
            assert answer.json()["error"]["code"] == "checkpoint_pending"
            assert answer.headers["Retry-After"] == "2"
        return None if answer.status_code in (404, 409) else answer  # earnings follow the log a moment later

    answer = eventually(look, "a proof", seconds=20)
    assert answer.status_code == 200, answer.text
    made = msgspec.json.decode(answer.content, type=InclusionProof)
    return proofs.check_inclusion(made, checkpoint_of(embedded, made.size))


def status_of(embedded: Coordinator, credential: str, **asked: str | int) -> int:
    with embedded.client(credential) as client:
        return client.get("/v1/transparency/inclusion", params=asked).status_code


async def test_a_consumer_proves_its_charge_and_a_provider_its_earning(embedded: Coordinator, paid: Paid) -> None:
    charge = proven(embedded, paid.consumer.secret, job_id=paid.job_id)
    earning = proven(embedded, paid.provider.secret, job_id=paid.job_id)

    assert charge.topic == "Wallet.HoldCaptured"
    assert paid.consumer.account_id.encode() in charge.payload
    assert paid.provider.account_id.encode() not in charge.payload
    assert earning.topic == "Wallet.EarningCredited"
    assert paid.provider.account_id.encode() in earning.payload
    assert paid.consumer.account_id.encode() not in earning.payload
    assert proven(embedded, paid.token, job_id=paid.job_id) == earning
    assert proven(embedded, paid.consumer.secret, job_id=f"chatcmpl-{paid.job_id}") == charge
    assert proven(embedded, paid.consumer.secret, position=charge.position) == charge


async def test_what_belongs_to_others_is_answered_like_what_does_not_exist(embedded: Coordinator, paid: Paid) -> None:
    charge = proven(embedded, paid.consumer.secret, job_id=paid.job_id)
    stranger = embedded.books.open_account(5)

    for asked in ({"job_id": paid.job_id}, {"position": charge.position}, {"position": 10**15}):
        assert status_of(embedded, stranger.secret, **asked) == 404
    assert status_of(embedded, paid.provider.secret, position=charge.position) == 404
    for credential in ("", "eigeninference-unknown", "eigeninference-pt-unknown"):
        assert status_of(embedded, credential, job_id=paid.job_id) == 401


async def test_questions_that_are_none_are_refused(embedded: Coordinator, paid: Paid) -> None:
    asked: tuple[dict[str, str | int], ...] = (
        {},
        {"job_id": "nonsense"},
        {"position": "0"},
        {"position": "-1"},
        {"position": "1e3"},
        {"position": 1, "job_id": paid.job_id},
        {"position": 1, "size": "x"},
    )
    assert {status_of(embedded, paid.consumer.secret, **question) for question in asked} == {400}
    with embedded.client() as client:
        for query in ("", "from=0", "from=2&to=1", "from=1&to=x"):
            assert client.get(f"/v1/transparency/consistency?{query}").status_code == 400
        assert client.get("/v1/transparency/consistency?from=1&to=999999999").status_code == 404
        assert client.get("/v1/transparency/checkpoint?size=999999999").status_code == 404


async def test_anyone_checks_that_the_log_only_grew(embedded: Coordinator, paid: Paid) -> None:
    proven(embedded, paid.consumer.secret, job_id=paid.job_id)
    old = checkpoint_of(embedded)
    later = embedded.books.open_account(5)
    granted = embedded.books.value(
        "SELECT max(position) FROM events WHERE topic = 'Wallet.PromotionalCreditGranted'"
        " AND convert_from(state, 'UTF8')::jsonb ->> 'account_id' = %s",
        later.account_id,
    )
    assert isinstance(granted, int)
    proven(embedded, later.secret, position=granted)
    new = checkpoint_of(embedded)

    with embedded.client() as client:
        answer = client.get("/v1/transparency/consistency", params={"from": old.size, "to": new.size})

    assert new.size > old.size
    proofs.check_consistency(msgspec.json.decode(answer.content, type=ConsistencyProof), old, new)
    assert checkpoint_of(embedded, old.size) == old


async def test_the_key_of_the_embedded_default_is_closed_to_others(
    embedded: Coordinator, paid: Paid, folder: Path
) -> None:
    proven(embedded, paid.consumer.secret, job_id=paid.job_id)

    for name in ("checkpoint.key", "checkpoint.key.signed"):
        assert stat.S_IMODE((folder / "data" / name).stat().st_mode) == 0o600
    assert "PRIVATE" not in embedded.process.log()


def test_a_projecting_process_of_its_own_signs_with_the_key_that_it_is_given(database: str, tmp_path: Path) -> None:
    given = {
        "DARKBLOOM_DATABASE_URL": database,
        "DARKBLOOM_CHECKPOINT_KEY_FILE": str(tmp_path / "checkpoint.key"),
        "DARKBLOOM_LOG_ORIGIN": "example.org/ledger",
        "DARKBLOOM_CHECKPOINT_SECONDS": "0.2",
    }
    books = Books(database)
    without = {"DARKBLOOM_DATABASE_URL": database}
    processes = [
        Process(name, darkbloomd("project"), tmp_path, environment)
        for name, environment in (("signs", given), ("follows", without))
    ]
    try:
        for process in processes:
            process.ready_line()
        books.open_account(5)
        [[origin]] = eventually(
            lambda: books.rows("SELECT split_part(note, E'\\n', 1) FROM checkpoints"), "a checkpoint"
        )
        assert origin == "example.org/ledger"
        assert "signs no checkpoints" in processes[1].log()
    finally:
        for process in processes:
            assert process.terminate() == 0


def test_the_benchmark_reports_what_it_promises(postgres_server: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.proofs", "--json", "--leaves", "2000"],
        env=os.environ | {"DARKBLOOM_DATABASE_URL": postgres_server},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )

    report = json.loads(done.stdout)
    assert report["leaves"] == 2_000
    assert report["inclusion_proof_bytes"] == 32 * 11
    assert min(report.values()) > 0


async def test_the_commands_of_the_how_to_page_work_as_they_stand(
    embedded: Coordinator, paid: Paid, folder: Path, tmp_path: Path
) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", HOW_TO.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    proven(embedded, paid.consumer.secret, job_id=paid.job_id)
    script = "set -euxo pipefail\n" + "\n".join(blocks).replace("http://127.0.0.1:8080", embedded.url)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DARKBLOOM_")} | {
        "KEY": paid.consumer.secret,
        "JOB": paid.job_id,
        "DARKBLOOM_DATA_DIR": str(folder / "data"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )

    assert done.returncode == 0, done.stderr[-3_000:]
    said = done.stdout
    assert "ok: Wallet.HoldCaptured stands at position" in said
    assert re.search(r"ok: the log of \d+ events begins with the log of \d+ events", said)
    assert said.count("every event is covered") == 2
    assert len((tmp_path / "today.hashes").read_text().splitlines()) > 1
