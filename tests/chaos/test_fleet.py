"""What breaks in a running market is survived by every request and by the books, and heals by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator

import httpx
import psycopg
import pytest

from tests.chaos.fleet import FAULTS, Fault, Market, suffer
from tests.conftest import POSTGRES_URL, database_url, missing_service
from tests.support.machine import MODEL
from tests.support.processes import eventually

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "What is a hold?"}], "max_tokens": 12}
LONG = {"max_tokens": 900, "stream": True, "temperature": 1.5, "logit_bias": {"0": -100}}
"""An answer that does not end by itself: token 0 is the model's only end."""


@pytest.fixture(scope="module")
def market(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, migrated_template: str
) -> Generator[Market, None, None]:
    if postgres_server != POSTGRES_URL:
        missing_service(f"PostgreSQL at {POSTGRES_URL}")
    folder = tmp_path_factory.mktemp("market")
    name = f"darkbloom_test_{folder.name}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
        with Market(folder, database_url(postgres_server, name)).open() as running:
            yield running
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_request_ends_once_and_the_market_heals(market: Market, fault: Fault) -> None:
    suffer(market, fault)


@pytest.mark.timeout(240)
def test_an_agent_killed_before_its_first_chunk_costs_an_attempt_and_not_the_request(market: Market) -> None:
    market.kill("agent-2")
    eventually(lambda: market.routable() == 1, "the other agent to be gone")
    answers: list[httpx.Response] = []

    def ask() -> None:
        with market.client() as client:
            answers.append(client.post("/v1/chat/completions", json=ASK))

    asking = threading.Thread(target=ask)
    market.running["agent-1"].popen.send_signal(signal.SIGSTOP)  # so that it takes the job and says nothing
    asking.start()
    eventually(lambda: market.books.value("SELECT count(*) FROM claims") == 1, "the job to be at the agent")
    market.start("agent-2")
    eventually(lambda: market.routable() == 2, "the other agent to be back")

    market.kill("agent-1")
    asking.join()

    assert [answer.status_code for answer in answers] == [200]
    market.start("agent-1")
    market.until_served()
    market.require_books()


@pytest.mark.timeout(240)
def test_an_agent_killed_after_its_first_chunk_ends_the_stream_with_an_error_and_costs_nothing(market: Market) -> None:
    market.kill("agent-2")
    eventually(lambda: market.routable() == 1, "the other agent to be gone")
    before = market.books.balance(market.key.account_id)
    with market.client() as client, client.stream("POST", "/v1/chat/completions", json=ASK | LONG) as answer:
        lines = answer.iter_lines()
        assert any("content" in line for line in lines)
        market.kill("agent-1")
        rest = list(lines)

    assert any('"error"' in line for line in rest), rest
    assert market.books.balance(market.key.account_id) == before
    market.start("agent-1")
    market.start("agent-2")
    market.until_served()
    market.require_books()
