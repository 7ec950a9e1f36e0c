"""Each benchmark of the gateway, dispatch, routing and policies still runs and reports what it promises, in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.parts import broker_of_its_own

GATEWAY = {
    "requests_per_second_1",
    "requests_per_second_8",
    "requests_per_second_32",
    "added_p50_ms",
    "added_p99_ms",
    "tokens_per_second_64_streams",
    "memory_per_stream_kb",
    "bare_requests_per_second_32",
    "litellm_requests_per_second_32",
}
YARDSTICKS = {"durable_commit_p50_ms", "million_loops_ms"}
LATENCIES = {f"{way}_p{percent}_ms" for way in ("embedded", "bare_embedded") for percent in (50, 99)}
WITH_RABBITMQ = {f"{way}_p{percent}_ms" for way in ("rabbitmq", "bare_rabbitmq") for percent in (50, 99)}
JOBS = {"jobs_per_second_1_worker", "jobs_per_second_2_workers"}


def figures_of(benchmark: str, *words: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "LITELLM_PYTHON"}
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--json", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_the_gateway_s(postgres_server: str) -> None:
    sizes = ("--rounds", "1", "--seconds", "0.3", "--words", "20", "--open-streams", "10")
    figures = figures_of("gateway", "--database-url", postgres_server, *sizes)

    assert figures.keys() == GATEWAY | YARDSTICKS
    assert figures.pop("litellm_requests_per_second_32") is None
    assert all(figures[name] > 0 for name in GATEWAY if "per_second" in name and name in figures)


@pytest.mark.parametrize(
    ("part", "promised"),
    [
        ("embedded", LATENCIES),
        ("rabbitmq", WITH_RABBITMQ),
        ("jobs", JOBS),
        ("heartbeats", {"heartbeat_core_share_3"}),
    ],
)
def test_each_part_of_that_of_dispatch(postgres_server: str, part: str, promised: set[str]) -> None:
    sizes = ("--requests", "5", "--jobs", "20", "--machines", "3", "--heartbeat-seconds", "0.5")
    with broker_of_its_own() as broker:
        figures = figures_of(
            "dispatch", "--database-url", postgres_server, "--broker-url", broker, "--parts", part, *sizes
        )

    assert figures.keys() == promised | YARDSTICKS
    assert all(value > 0 for name, value in figures.items() if not name.startswith("heartbeat"))


def test_what_of_it_needs_rabbitmq_is_null_without(postgres_server: str) -> None:
    where = ("--database-url", postgres_server, "--broker-url", "amqp://guest:guest@127.0.0.1:9/")
    figures = figures_of("dispatch", *where, "--machines", "3", "--parts", "rabbitmq", "jobs", "heartbeats")

    measured = {name: figures.pop(name) for name in YARDSTICKS}
    assert all(value > 0 for value in measured.values())
    assert figures == dict.fromkeys(WITH_RABBITMQ | JOBS | {"heartbeat_core_share_3"})


def test_that_of_policies() -> None:
    figures = figures_of("policy", "--seeds", "1", "--machines", "15", "--requests-per-second", "0.5")

    policies = {"ours", "random", "round_robin", "least_loaded"}
    names = ("ttft_p50_ms", "ttft_p95_ms", "completed")
    assert figures.keys() == {f"{name}_{policy}" for name in names for policy in policies} | {"requests"}
    assert all(figures["ttft_p95_ms_ours"] <= figures[f"ttft_p95_ms_{policy}"] for policy in policies)


def test_that_of_routing(postgres_server: str) -> None:
    sizes = ("--machines", "50", "--decisions", "5", "--churn", "10", "--scans", "500")
    figures = figures_of("routing", "--database-url", postgres_server, *sizes)

    assert {"decision_p50_ms_50", "decision_p99_ms_50", "cost_regret_percent"} <= figures.keys()
