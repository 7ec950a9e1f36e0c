"""A stand-in for Privy's user API, over real HTTP and as strict as the real one."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

APP_ID = "app-123"
APP_SECRET = "secret-456"


class Privy:
    """``users`` are by their DID. ``status`` and ``delay_seconds`` make it fail; ``raw`` is answered as it stands."""

    def __init__(self) -> None:
        self.users: dict[str, list[dict[str, Any]]] = {}
        self.status = 200
        self.delay_seconds = 0.0
        self.raw: bytes | None = None
        self.asked: list[str] = []
        self.released = threading.Event()
        self.url = ""

    def answer(self, path: str, headers: Any) -> tuple[int, bytes]:
        self.asked.append(path)
        expected = "Basic " + base64.b64encode(f"{APP_ID}:{APP_SECRET}".encode()).decode()
        if headers.get("Authorization") != expected:
            return 401, b'{"error": "Invalid app ID or app secret."}'
        if headers.get("Privy-App-Id") != APP_ID:
            return 400, b'{"error": "Missing privy-app-id header"}'
        prefix = "/api/v1/users/"
        if not path.startswith(prefix) or "/" in path.removeprefix(prefix):
            return 404, b'{"error": "Not found"}'
        did = unquote(path.removeprefix(prefix))
        if self.status != 200:
            return self.status, b'{"error": "Something went wrong"}'
        if self.raw is not None:
            return 200, self.raw
        if did not in self.users:
            return 404, b'{"error": "User not found"}'
        user = {"id": did, "created_at": 1731974895, "linked_accounts": self.users[did], "is_guest": False}
        return 200, json.dumps(user).encode()


def email(address: str, *, verified: bool = True) -> dict[str, Any]:
    at = int(time.time()) if verified else None
    return {"type": "email", "address": address, "verified_at": at, "first_verified_at": at, "latest_verified_at": at}


def solana_wallet(address: str, wallet_id: str) -> dict[str, Any]:
    return {
        "type": "wallet",
        "chain_type": "solana",
        "address": address,
        "id": wallet_id,
        "wallet_client": "privy",
    }


@contextmanager
def privy() -> Generator[Privy, None, None]:
    stand_in = Privy()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = stand_in.answer(self.path, self.headers)
            stand_in.released.wait(stand_in.delay_seconds)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stand_in
    finally:
        stand_in.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
