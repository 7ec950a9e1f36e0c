"""Bad input gets a clear error that says what to do, and costs nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from api.cli import main
from tests.support.machine import MODEL
from tests.support.processes import Coordinator, Key, Process, coordinator, darkbloomd

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(1_000)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b'"text"', 400, "object"),
        (b"\xff\xfe", 400, "JSON"),
        (b'{"model":1,"messages":[]}', 400, "model"),
        (b'{"model":"x"}', 400, "messages"),
        (b'{"model":"x","messages":[]}', 400, "messages"),
        (b'{"model":"x","messages":[{"role":"nobody","content":"a"}]}', 400, "role"),
        (b'{"model":"x","messages":[{"role":"user","content":5}]}', 400, "content"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, 400, "nested"),
        (json.dumps(ASK | {"model": "unknown"}).encode(), 404, "GET /v1/models"),
        (json.dumps(ASK | {"max_tokens": 1.5}).encode(), 400, "max_tokens"),
        (json.dumps(ASK | {"max_tokens": "12"}).encode(), 400, "max_tokens"),
        (json.dumps(ASK | {"stream": "yes"}).encode(), 400, "stream"),
        (json.dumps(ASK | {"model": "mlx-community/MiniMax-M2.5-8bit"}).encode(), 402, "balance"),
    ],
)
def test_a_bad_body_is_refused_in_one_envelope(up: Coordinator, key: Key, body: bytes, status: int, word: str) -> None:
    with up.client(key.secret) as client:
        answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert word in error["message"]
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    assert up.books.balance(key.account_id) == (1_000, 0, 0)
    assert up.books.ends_of(key.account_id) == []


def test_a_body_over_the_limit_is_refused_before_it_is_read(up: Coordinator, key: Key) -> None:
    body = json.dumps(ASK | {"padding": "x" * (16 * 1024 * 1024)}).encode()
    with up.client(key.secret) as client:
        declared = client.post("/v1/chat/completions", content=body)
        chunked = client.post("/v1/chat/completions", content=iter([body[:9_000_000], body[9_000_000:]]))
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"


def test_no_machine_for_a_known_model_is_said_so_and_releases_the_hold(up: Coordinator) -> None:
    key = up.books.open_account(10_000_000)
    with up.client(key.secret) as client:
        answer = client.post("/v1/chat/completions", json=ASK | {"model": "mlx-community/Trinity-Mini-8bit"})
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "model_not_available"
    assert "No machine that serves this model is connected" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    assert up.books.balance(key.account_id) == (10_000_000, 0, 0)
    assert up.books.ends_of(key.account_id) == ["RequestReleased"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic abc"},
        {"Authorization": "Bearer two words"},
        {"Authorization": "Bearer eigeninference-" + "0" * 64},
        {"Authorization": "Bearer eigeninference-pt-" + "0" * 64},
        {"X-Api-Key": "nope"},
    ],
)
def test_a_missing_unknown_or_foreign_credential_is_401(up: Coordinator, headers: dict[str, str]) -> None:
    with up.client() as client:
        for path in ("/v1/models", "/v1/payments/balance", "/v1/payments/usage"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/chat/completions", json=ASK, headers=headers).status_code == 401


def test_a_key_works_in_either_header_until_it_is_revoked(up: Coordinator, key: Key) -> None:
    with up.client() as client:
        assert client.get("/v1/models", headers={"X-Api-Key": key.secret}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": f"bearer  {key.secret}"}).status_code == 200
        done = subprocess.run(
            darkbloomd("keys", "revoke", key.key_id),
            env=os.environ | {"DARKBLOOM_DATABASE_URL": up.books.dsn},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "revoked\n"
        assert client.get("/v1/models", headers={"X-Api-Key": key.secret}).status_code == 401
        again = subprocess.run(
            darkbloomd("keys", "revoke", key.key_id),
            env=os.environ | {"DARKBLOOM_DATABASE_URL": up.books.dsn},
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 1
        assert "no active key" in again.stderr


def test_one_account_never_sees_the_other_ones_books(up: Coordinator, key: Key) -> None:
    other = up.books.open_account(777)
    with up.client(other.secret) as client:
        assert client.get("/v1/payments/balance").json()["balance_micro_usd"] == 777
        assert client.get("/v1/payments/usage").json()["usage"] == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "endpoint_not_found"),
        ("GET", "/nothing", 404, "endpoint_not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods_answer_in_json(
    up: Coordinator, key: Key, method: str, path: str, status: int, code: str
) -> None:
    with up.client(key.secret) as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert (status == 405) == ("allow" in answer.headers)


def test_the_internal_endpoint_is_closed_without_its_secret(up: Coordinator, key: Key) -> None:
    with up.client(key.secret) as client:
        assert client.post("/internal/notices", content=b"{}").status_code == 401


# --- operators ----------------------------------------------------------------------------------------------------


def _up(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DARKBLOOM_")}
    return subprocess.run(
        darkbloomd(*words), env=clean | (env or {}), capture_output=True, text=True, check=False, timeout=60
    )


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _up("up", "--port", str(port), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_an_unusable_data_directory_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    done = _up("up", "--port", "0", "--data-dir", str(file / "data"))
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_up_on_the_same_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with coordinator(tmp_path) as first:
        done = _up("up", "--port", "0", "--data-dir", str(tmp_path / "data"))
        assert done.returncode == 1
        assert str(first.process.popen.pid) in done.stderr
        assert "Traceback" not in done.stderr
        with first.client() as client:
            assert client.get("/health").json()["status"] == "ok"


def test_a_database_of_a_newer_schema_is_refused_unchanged(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    done = _up("up", "--port", "0", env={"DARKBLOOM_DATABASE_URL": database})
    assert done.returncode == 1
    assert "newer release" in done.stderr
    assert "Traceback" not in done.stderr
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_an_unreachable_database_is_named() -> None:
    done = _up("up", "--port", "0", env={"DARKBLOOM_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"})
    assert done.returncode == 1
    assert "DARKBLOOM_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url", ["amqp//user:s3cret@127.0.0.1", "amqp://user:s3cret@127.0.0.1:1/", "amqp://u:s3@cret:x/"]
)
def test_a_broker_that_cannot_be_used_is_named_once_and_without_its_password(url: str, database: str) -> None:
    done = _up("up", "--port", "0", env={"DARKBLOOM_BROKER_URL": url, "DARKBLOOM_DATABASE_URL": database})
    assert done.returncode == 1
    assert "DARKBLOOM_BROKER_URL" in done.stderr
    assert "cret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_an_address_that_is_not_this_machine_s_is_named_with_what_to_do(tmp_path: Path) -> None:
    done = _up("up", "--host", "192.0.2.1", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "--host" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_named_with_their_variable() -> None:
    done = _up("up", env={"DARKBLOOM_PORT": "many"})
    assert done.returncode == 1
    assert "DARKBLOOM_PORT" in done.stderr
    done = _up("up", env={"DARKBLOOM_ENVIRONMENT": "production", "DARKBLOOM_MINIMUM_TRUST": "none"})
    assert done.returncode == 1
    assert "development only" in done.stderr


@pytest.mark.parametrize("amount", ["-1", "1e3", "abc", "0.0000001", "NaN", ""])
def test_a_credit_that_is_no_amount_is_a_usage_error(amount: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["keys", "create", "--credit", amount, "--data-dir", str(tmp_path / "data")])
    assert done.exit_code == 2
    assert "--credit" in done.output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("role", ["auditor", "admin"])
def test_only_a_consumers_key_has_scopes(role: str, tmp_path: Path) -> None:
    options = ["--role", role, "--scope", "keys", "--data-dir", str(tmp_path / "data")]
    done = CliRunner().invoke(main, ["keys", "create", *options])
    assert done.exit_code == 2
    assert "--scope" in done.output
    assert "only a consumer's key has scopes" in done.output
    assert not (tmp_path / "data").exists()


def test_the_key_alone_is_on_stdout_and_works(tmp_path: Path) -> None:
    with coordinator(tmp_path) as running:
        done = _up("keys", "create", "--credit", "2.50", "--data-dir", str(tmp_path / "data"))
        assert done.returncode == 0
        secret = done.stdout.removesuffix("\n")
        assert secret.startswith("eigeninference-")
        assert len(secret) == len("eigeninference-") + 64
        with running.client(secret) as client:
            assert client.get("/v1/payments/balance").json()["balance_usd"] == "2.500000"


@pytest.mark.parametrize("what", ["missing", "empty", "not_weights"])
def test_a_model_path_that_is_no_model_ends_the_agent_with_code_5(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "model"
    if what != "missing":
        folder.mkdir()
    if what == "not_weights":
        (folder / "config.json").write_text("{}")
    command = [sys.executable, "-m", "agent", "serve", "--coordinator", "http://127.0.0.1:1", "--model", str(folder)]
    process = Process("agent", command, tmp_path, {"DARKBLOOM_HOME": str(tmp_path / "home")})
    assert process.popen.wait(60) == 5
    assert str(folder) in process.log()
    assert "Traceback" not in process.log()
