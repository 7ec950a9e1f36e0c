"""What a gateway does in a second, beside an application that does nothing.

Everything is on: HTTP, key, hold, scheduler, sealing, socket, relay and settlement, each durable in PostgreSQL. Only
the machine is fake; it is a process of its own that speaks the real protocol, seals for real, and answers at once. In
the same run the same load goes to a bare FastAPI application that answers a constant, and, when ``LITELLM_PYTHON``
names the interpreter of an environment that has it, to the ``litellm`` proxy with its network mock and no database.

``requests_per_second_N`` is a closed loop of N clients with whole answers; ``added_…`` is latency at 100 requests a
second in an open loop, less that of the bare application at the same percentile; ``tokens_per_second_64_streams``
counts words that reach the clients; ``memory_per_stream_kb`` is by how much the gateway grew at its peak while 1,000
streams were open, for each. All shares the processors with the load, so read ratios within a run first.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import secrets
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
import uvloop

from api.demo import Process, wait_for
from benchmarks import load
from benchmarks.databases import arguments, scratch_database, server, show
from benchmarks.fake_machines import HOLD_OPEN, MODEL
from benchmarks.processes import darkbloomd_output, free_port, resident_bytes, start, url_of
from benchmarks.yardsticks import yardsticks

PATH = "/v1/chat/completions"
CLIENTS = (1, 8, 32)
RATE = 100.0
STREAMS = 64
SLOTS = 64
"""The most that a coordinator gives one machine at once."""

COUNTED = b'"content":" word"'

LITELLM_CONFIG = """
model_list:
  - model_name: constant
    litellm_params: {model: openai/constant, api_key: none, api_base: "http://127.0.0.1:1"}
litellm_settings: {network_mock: true}
"""


def _chat(
    url: str, key: str, *, model: str = MODEL, prompt: str = "Hello", words: int = 16, stream: bool = False
) -> load.Target:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": words, "stream": stream}
    return load.post(url + PATH, body, key=key)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def _throughput(ours: load.Target, bare: load.Target, seconds: float, rounds: int) -> dict[str, float]:
    """The median of rounds that alternate between the two."""
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for clients in CLIENTS:
            rate = await load.requests_per_second(ours, clients, seconds)
            figures.setdefault(f"requests_per_second_{clients}", []).append(rate)
        rate = await load.requests_per_second(bare, CLIENTS[-1], seconds)
        figures.setdefault(f"bare_requests_per_second_{CLIENTS[-1]}", []).append(rate)
    return {name: round(statistics.median(values)) for name, values in figures.items()}


async def _latency(ours: load.Target, bare: load.Target, seconds: float, rounds: int) -> dict[str, float]:
    added: dict[int, list[float]] = {50: [], 99: []}
    for _ in range(rounds):
        without = await load.latencies_ms(bare, RATE, seconds)
        through = await load.latencies_ms(ours, RATE, seconds)
        for percent, differences in added.items():
            differences.append(_percentile(through, percent) - _percentile(without, percent))
    return {f"added_p{percent}_ms": round(statistics.median(some), 2) for percent, some in added.items()}


async def _tokens(target: load.Target, rounds: int) -> dict[str, float]:
    rates = [await load.counted_per_second(target, STREAMS, COUNTED) for _ in range(rounds)]
    return {f"tokens_per_second_{STREAMS}_streams": round(statistics.median(rates))}


async def _memory(target: load.Target, coordinator: Process, streams: int) -> dict[str, float]:
    before = resident_bytes(coordinator)
    opening = asyncio.create_task(load.hold_open(target, streams, COUNTED))
    peak = before
    while not opening.done():
        await asyncio.wait({opening}, timeout=0.05)
        peak = max(peak, resident_bytes(coordinator))
    for connection in await opening:
        connection.close()
    return {"memory_per_stream_kb": round((peak - before) / streams / 1000, 1)}


async def _measure(
    url: str, bare_url: str, key: str, coordinator: Process, options: argparse.Namespace
) -> dict[str, float]:
    gc.disable()
    ours, bare = _chat(url, key), _chat(bare_url, key)
    await load.requests_per_second(ours, CLIENTS[-1], options.seconds)  # warm-up
    figures = await _latency(ours, bare, options.seconds, options.rounds)
    figures |= await _throughput(ours, bare, options.seconds, options.rounds)
    streams = _chat(url, key, words=options.words, stream=True)
    figures |= await _tokens(streams, options.rounds)
    return figures


async def _open_streams(url: str, key: str, coordinator: Process, streams: int) -> dict[str, float]:
    return await _memory(_chat(url, key, prompt=HOLD_OPEN, stream=True), coordinator, streams)


def _litellm(folder: Path, seconds: float) -> float | None:
    python = os.environ.get("LITELLM_PYTHON")
    if not python:
        return None
    config, port, key = folder / "litellm.yaml", free_port(), f"sk-{secrets.token_hex(32)}"
    config.write_text(LITELLM_CONFIG)
    words = ("litellm.proxy.proxy_cli", "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    with ExitStack() as running:
        proxy = start(running, folder, "litellm", *words, "--num_workers", "1", python=python, LITELLM_MASTER_KEY=key)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(url + "/health/liveliness"), "litellm", proxy)
        target = _chat(url, key, model="constant")
        uvloop.run(load.requests_per_second(target, CLIENTS[-1], seconds))
        return round(uvloop.run(load.requests_per_second(target, CLIENTS[-1], seconds)))


def _answers(url: str) -> bool | None:
    try:
        return httpx.get(url).status_code == 200 or None
    except httpx.HTTPError:
        return None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each round of each kind of load lasts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=900, help="of each of the 64 streams")
    parser.add_argument("--open-streams", type=int, default=1_000)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkbloom-bench-")))
        litellm = _litellm(folder, options.seconds)
        dsn = stack.enter_context(scratch_database(stack.enter_context(server(options.database_url))))
        figures: dict[str, float | None] = {**yardsticks(dsn)}
        key = darkbloomd_output(dsn, "keys", "create", "--credit", "10000")
        bare = start(stack, folder, "bare", "benchmarks.bare_app")
        words = ("up", "--port", "0", "--data-dir", str(folder / "data"))
        coordinator = start(stack, folder, "coordinator", "api.cli", *words, DARKBLOOM_DATABASE_URL=dsn)
        url, bare_url = url_of(coordinator), url_of(bare)
        machine = start(stack, folder, "machine", "benchmarks.fake_machines", url, "--slots", str(SLOTS))
        machine.first_line()
        figures |= uvloop.run(_measure(url, bare_url, key, coordinator, options))
        more = ("--machines", str(options.open_streams // SLOTS + 1), "--slots", str(SLOTS))
        start(stack, folder, "machines", "benchmarks.fake_machines", url, *more).first_line()
        figures |= uvloop.run(_open_streams(url, key, coordinator, options.open_streams))
    show(figures | {"litellm_requests_per_second_32": litellm}, as_json=options.json)


if __name__ == "__main__":
    main()
