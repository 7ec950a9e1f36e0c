"""``darkbloom login`` and ``logout`` as processes, against a scripted coordinator over real HTTP."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "eigeninference-pt-" + "ab" * 32
OTHER_TOKEN = "eigeninference-pt-" + "cd" * 32
PENDING = (200, {"status": "authorization_pending"})
AUTHORIZED = (200, {"status": "authorized", "token": TOKEN, "account_id": "acct"})


class Coordinator:
    """Answers each path from a list, the last answer for ever."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.answers: dict[str, list[tuple[int, Any]]] = {
            "/v1/device/code": [
                (
                    200,
                    {
                        "device_code": "d" * 64,
                        "user_code": "K7QM-3XZP",
                        "verification_uri": "https://console.example/link",
                        "expires_in": 20,
                        "interval": 0.05,
                    },
                )
            ],
            "/v1/device/token": [AUTHORIZED],
            "/v1/device/revoke": [(200, {"status": "revoked"})],
        }


@pytest.fixture
def coordinator() -> Generator[Coordinator, None, None]:
    scripted = Coordinator()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = json.loads(content) if content else {}
            scripted.requests.append((self.path, self.headers.get("Authorization", ""), body))
            answers = scripted.answers[self.path]
            status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if status == 0:
                self.close_connection = True
                return
            sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            if status == 307:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    scripted.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield scripted
    server.shutdown()
    thread.join()
    server.server_close()


def darkbloom(home: Path, url: str, *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "DARKBLOOM_HOME": str(home), "DARKBLOOM_COORDINATOR_URL": url, **more}
    command = [sys.executable, "-m", "agent", *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_machine_waits_for_its_token_and_keeps_it_to_itself(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.answers["/v1/device/token"] = [PENDING, (0, None), (200, b"<html>"), (502, {}), PENDING, AUTHORIZED]
    done = darkbloom(tmp_path / "home", coordinator.url, "login")
    assert done.returncode == 0, done.stderr
    assert "https://console.example/link" in done.stdout
    assert "K7QM-3XZP" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    file = tmp_path / "home" / "auth_token"
    assert file.read_text() == f"{TOKEN}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    polls = [body for path, _, body in coordinator.requests if path == "/v1/device/token"]
    assert polls == [{"device_code": "d" * 64}] * 6


def test_the_machine_says_by_what_its_owner_knows_it(coordinator: Coordinator, tmp_path: Path) -> None:
    assert darkbloom(tmp_path / "home", coordinator.url, "login").returncode == 0
    [said] = [body for path, _, body in coordinator.requests if path == "/v1/device/code"]
    assert said.keys() == {"machine_name", "chip"}
    assert said["machine_name"] == platform.node()


def test_a_machine_that_its_owner_refused_is_told_so(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.answers["/v1/device/token"] = [PENDING, (200, {"status": "access_denied"})]
    done = darkbloom(tmp_path / "home", coordinator.url, "login")
    assert done.returncode == 3
    assert "refused to link this machine" in done.stderr
    assert not (tmp_path / "home" / "auth_token").exists()


def test_who_is_linked_already_stays_so_unless_forced(coordinator: Coordinator, tmp_path: Path) -> None:
    file = tmp_path / "auth_token"
    file.write_text(OTHER_TOKEN)
    file.chmod(0o600)
    done = darkbloom(tmp_path, coordinator.url, "login")
    assert (done.returncode, coordinator.requests, file.read_text()) == (0, [], OTHER_TOKEN)
    assert OTHER_TOKEN[:20] not in done.stdout
    done = darkbloom(tmp_path, coordinator.url, "login", "--force", "--no-browser")
    assert (done.returncode, file.read_text()) == (0, f"{TOKEN}\n")


@pytest.mark.parametrize("status", [404, 410])
def test_a_code_that_nobody_approves_ends_it(coordinator: Coordinator, tmp_path: Path, status: int) -> None:
    coordinator.answers["/v1/device/token"] = [PENDING, (status, {"error": {"message": "This code\x1b[31m is over."}})]
    done = darkbloom(tmp_path, coordinator.url, "login")
    assert done.returncode == 3
    assert "This code [31m is over." in done.stderr
    assert not (tmp_path / "auth_token").exists()


@pytest.mark.parametrize("last", [(200, {"status": "access_denied"}), (200, {"status": "authorized", "token": "no"})])
def test_another_end_is_an_end_too(coordinator: Coordinator, tmp_path: Path, last: tuple[int, Any]) -> None:
    coordinator.answers["/v1/device/token"] = [last]
    assert darkbloom(tmp_path, coordinator.url, "login").returncode == 3
    assert not (tmp_path / "auth_token").exists()


def test_it_gives_up_when_the_code_has_expired(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.answers["/v1/device/code"][0][1]["expires_in"] = 0.3
    coordinator.answers["/v1/device/token"] = [PENDING]
    done = darkbloom(tmp_path, coordinator.url, "login")
    assert (done.returncode, "in time" in done.stderr) == (3, True)


@pytest.mark.parametrize("answer", [(503, {"error": {"message": "Not here."}}), (200, {}), (307, {}), (0, None)])
def test_a_coordinator_that_gives_out_no_code_is_named(
    coordinator: Coordinator, tmp_path: Path, answer: tuple[int, Any]
) -> None:
    coordinator.answers["/v1/device/code"] = [answer]
    done = darkbloom(tmp_path, coordinator.url, "login")
    assert done.returncode == 4
    assert coordinator.url in done.stderr


def test_nobody_listening_is_exit_code_4(tmp_path: Path) -> None:
    assert darkbloom(tmp_path, "http://127.0.0.1:1", "login").returncode == 4


def test_a_token_that_was_made_elsewhere_is_taken_over(tmp_path: Path) -> None:
    done = darkbloom(tmp_path, "http://127.0.0.1:1", "login", "--token-file", "-", stdin=f" {TOKEN}\n")
    assert (done.returncode, (tmp_path / "auth_token").read_text()) == (0, f"{TOKEN}\n")
    assert TOKEN not in done.stdout + done.stderr
    file = tmp_path / "token"
    file.write_text("eigeninference-" + "ab" * 32)
    done = darkbloom(tmp_path, "http://127.0.0.1:1", "login", "--force", "--token-file", str(file))
    assert (done.returncode, (tmp_path / "auth_token").read_text()) == (3, f"{TOKEN}\n")


def test_the_token_may_have_a_place_of_its_own(coordinator: Coordinator, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    place = folder / "token"
    done = darkbloom(tmp_path, coordinator.url, "login", DARKBLOOM_AUTH_TOKEN_PATH=str(place))
    assert (done.returncode, place.read_text()) == (0, f"{TOKEN}\n")
    assert folder.stat().st_mode & 0o777 == 0o755


def test_logging_out_forgets_the_token_here(coordinator: Coordinator, tmp_path: Path) -> None:
    file = tmp_path / "auth_token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    done = darkbloom(tmp_path, coordinator.url, "logout")
    assert (done.returncode, file.exists(), coordinator.requests) == (0, False, [])
    again = darkbloom(tmp_path, coordinator.url, "logout")
    assert (again.returncode, "not linked" in again.stdout) == (0, True)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (503, 4), (0, 4)])
def test_revoking_comes_first_so_that_nothing_is_forgotten_here_alone(
    coordinator: Coordinator, tmp_path: Path, status: int, code: int
) -> None:
    file = tmp_path / "auth_token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    coordinator.answers["/v1/device/revoke"] = [(status, {})]
    done = darkbloom(tmp_path, coordinator.url, "logout", "--revoke")
    assert (done.returncode, file.exists()) == (code, code != 0)
    assert coordinator.requests == [("/v1/device/revoke", f"Bearer {TOKEN}", {})]
