"""What the coordinator adds to a request: the same chats through it, and straight into the agent's engine.

Both run in one go, in alternating rounds, so that what else the machine does falls on both. "Added" is the difference
between the two distributions at a percentile. Through the coordinator means everything: HTTP, hold, scheduler, sealing,
socket, agent, relay and settlement, each durable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx

from agent.engine.job import ChatJob, ChatMessage, ChoiceEnd, Finished, Piece, Sampling
from agent.engine.text import TextEngine
from agent.engine.thread import MlxThread
from api.demo import Process, agent_process, command_output, coordinator_process, wait_for

MODEL = Path("models/darkbloom-tiny")
PROMPT = "What is a hold?"
CONTEXT_LENGTH = 1_024


class Sample(NamedTuple):
    """Milliseconds from asking to the first text, and to the end."""

    first_text_ms: float
    total_ms: float


Ask = Callable[[], Awaitable[Sample]]


async def _at_a_time(ask: Ask, requests: int, clients: int) -> list[Sample]:
    """So many requests, so many at a time."""
    left = iter(range(requests))

    async def client() -> list[Sample]:
        return [await ask() for _ in left]

    return [sample for samples in await asyncio.gather(*(client() for _ in range(clients))) for sample in samples]


def _direct(engine: TextEngine, max_tokens: int) -> Ask:
    job = ChatJob((ChatMessage("user", PROMPT),), max_tokens, Sampling(temperature=0.0))

    async def ask() -> Sample:
        began = time.perf_counter()
        first = 0.0
        async for event in engine.submit(job):
            if isinstance(event, Piece) and not first:
                first = time.perf_counter()
            assert isinstance(event, Piece | ChoiceEnd | Finished)
        ended = time.perf_counter()
        return Sample(((first or ended) - began) * 1000, (ended - began) * 1000)

    return ask


def _through_coordinator(client: httpx.AsyncClient, max_tokens: int) -> Ask:
    body = {
        "model": MODEL.name,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }

    async def ask() -> Sample:
        began = time.perf_counter()
        first = 0.0
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not first and '"content":"' in line and '"content":""' not in line:
                    first = time.perf_counter()
        ended = time.perf_counter()
        return Sample(((first or ended) - began) * 1000, (ended - began) * 1000)

    return ask


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def _measure(url: str, key: str, agent: Process, options: argparse.Namespace) -> dict[str, float]:
    thread = MlxThread()
    engine = TextEngine(MODEL, thread, context_length=CONTEXT_LENGTH, max_concurrent=options.clients)
    await engine.start()
    headers = {"Authorization": f"Bearer {key}"}
    direct: list[Sample] = []
    through: list[Sample] = []
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60.0) as client:
        agent.require_alive()
        ways = (
            (_direct(engine, options.max_tokens), direct),
            (_through_coordinator(client, options.max_tokens), through),
        )
        for ask, _ in ways:
            await _at_a_time(ask, 2 * options.clients, options.clients)  # warm-up
        for _ in range(options.rounds):
            for ask, samples in ways:
                samples.extend(await _at_a_time(ask, options.requests // options.rounds, options.clients))
    engine.close()
    return _report(direct, through)


def _report(direct: Sequence[Sample], through: Sequence[Sample]) -> dict[str, float]:
    report: dict[str, float] = {"requests": len(through)}
    for name, field in (("ttft", "first_text_ms"), ("total", "total_ms")):
        for percent in (50, 99):
            values = [_percentile([getattr(sample, field) for sample in way], percent) for way in (direct, through)]
            report[f"direct_{name}_p{percent}_ms"] = round(values[0], 2)
            report[f"coordinator_{name}_p{percent}_ms"] = round(values[1], 2)
            report[f"added_{name}_p{percent}_ms"] = round(values[1] - values[0], 2)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="darkbloom-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        url, data_dir = coordinator_process(folder, stack)
        key = command_output(data_dir, "keys", "create", "--credit", "100")
        agent = agent_process(folder, url, MODEL, stack)
        headers = {"Authorization": f"Bearer {key}"}
        wait_for(lambda: httpx.get(f"{url}/v1/models", headers=headers).json()["data"] or None, "the agent", agent)
        report = asyncio.run(_measure(url, key, agent, options))
    lines = [json.dumps(report)] if options.json else [f"{name:<28} {value}" for name, value in report.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    # MLX used from a thread aborts a process that ends in the ordinary way.
    os._exit(0)


if __name__ == "__main__":
    main()
