"""``darkbloomd fleet`` on a database, without a coordinator beside it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from adapters.postgres.pool import make_async_pool
from adapters.scheduler.gateway_fleet import GatewayFleet
from api.cli import main
from domain.routing import Cost, Reason
from tests.support.ledger_commands import GATEWAY, MODEL
from tests.support.ledger_machines import connected, lease
from tests.support.ledger_waiting import Connection
from tests.support.owned import Owned

pytest_plugins = ["tests.support.ledger_fixtures", "tests.support.role_fixtures"]


@pytest.fixture
async def gateway(ledger: str, look: Connection) -> AsyncGenerator[GatewayFleet, None]:
    lease(look)
    async with make_async_pool(ledger, size_max=2) as pool:
        yield GatewayFleet(pool, lambda: GATEWAY)


def run(ledger: str, *words: str, environment: str = "development") -> Result:
    settings = {"DARKBLOOM_DATABASE_URL": ledger, "DARKBLOOM_ENVIRONMENT": environment}
    return CliRunner().invoke(main, ["fleet", *words], env=settings)


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_before_any_machine_came_it_says_so(ledger: str) -> None:
    assert lines(run(ledger)) == ["no machine ever connected"]
    assert lines(run(ledger, "explain", MODEL)) == [f"no connected machine offers {MODEL}"]


async def test_each_reason_has_a_line_with_what_to_do(ledger: str, gateway: GatewayFleet) -> None:
    good = await connected(gateway)
    bad = await connected(gateway, draining=True, slots={}, thermal_state="critical")

    said = lines(run(ledger))
    assert [line.split()[0] for line in said[:3]] == ["machine", *(one.machine_id[:12] for one in (bad, good))]
    assert [line.split()[2:5] for line in said[1:3]] == [["draining", "no", "0/4"], ["online", "yes", "0/4"]]
    assert said[3:] == [
        f"{bad.machine_id[:12]} {reason}: {reason.says}; {reason.fix}"
        for reason in (Reason.DRAINING, Reason.OVERHEATED)
    ]


async def test_in_production_a_model_outside_of_the_catalog_has_no_costs(ledger: str, gateway: GatewayFleet) -> None:
    one = await connected(gateway, models=("homemade",))
    refused = run(ledger, "explain", "homemade", environment="production")
    assert refused.exit_code == 1
    assert "the network does not know the model 'homemade'" in refused.output

    reason = Reason.MODEL_NOT_IN_CATALOG
    assert lines(run(ledger, environment="production"))[-1] == (
        f"{one.machine_id[:12]} homemade {reason}: {reason.says}; {reason.fix}"
    )


async def test_costs_are_compared_and_the_rest_is_said_to_be_left_out(ledger: str, gateway: GatewayFleet) -> None:
    fast, slow = await connected(gateway, decode_tps=400.0), await connected(gateway, decode_tps=4.0)
    closed = await connected(gateway, decode_tps=900.0, draining=True)

    said = lines(run(ledger, "explain", MODEL, "--prompt-tokens", "100", "--output-tokens", "40"))
    assert said[0] == f"a request for {MODEL}: 100 tokens of prompt, 40 of answer; costs in ms"
    assert [line.split()[0] for line in said[2:5]] == [one.machine_id[:12] for one in (fast, slow, closed)]
    assert said[4].endswith("draining")
    assert said[5:] == [
        f"at gateway {str(GATEWAY)[:8]} it would go to {fast.machine_id[:12]}, with no other within 3000 ms of it"
    ]
    assert lines(run(ledger, "explain", MODEL, "--limit", "1"))[3] == "and 2 more machines; see --limit"


async def test_json_has_every_term_and_every_reason(ledger: str, gateway: GatewayFleet) -> None:
    one = await connected(gateway, account_id="acct", draining=True)
    told = json.loads(run(ledger, "explain", MODEL, "--json").output)
    [candidate] = told["candidates"]
    assert (candidate["id"], candidate["account_id"], candidate["eligible"]) == (one.machine_id, "acct", False)
    assert [reason["code"] for reason in candidate["reasons"]] == ["draining"]
    assert set(candidate["cost_ms"]) == {"total", *Cost.__struct_fields__}
    assert told["choices"] == [{"gateway_id": str(GATEWAY), "id": None, "near_ties": 0}]

    [listed] = json.loads(run(ledger, "--json").output)["providers"]
    assert (listed["id"], listed["account_id"], listed["routable"]) == (one.machine_id, "acct", False)
    assert listed["circuit_breaker"]["state"] == "closed"


def test_a_queue_has_a_line(ledger: str, gateway: GatewayFleet, look: Connection) -> None:
    look.execute(
        "INSERT INTO machine_health (machine_id, account_id, chip, machine_model, models, health) "
        "VALUES ('ab', '', '', '', '{}', '{}')"
    )
    for account_id in ("one", "one", "two"):
        look.execute(
            "INSERT INTO waiters (request_id, attempt, account_id, model, gateway_id, turn, deadline, message) "
            "VALUES (%s, 1, %s, %s, %s, 1, now() + interval '1 minute', '')",
            (uuid4(), account_id, MODEL, GATEWAY),
        )
    look.execute("INSERT INTO model_demand (model, slot_seconds) VALUES (%s, 7.5)", (MODEL,))
    assert lines(run(ledger))[-1] == (
        f"queue of {MODEL}: 3 waiting (accounts: 2), the oldest for 0 s; a request lately took a slot for 7.5 s"
    )


def test_the_role_of_an_auditor_is_enough(owned: Owned) -> None:
    with psycopg.connect(owned.owner, autocommit=True) as connection:
        lease(connection)
    assert lines(run(owned.auditor)) == ["no machine ever connected"]
    assert lines(run(owned.auditor, "explain", MODEL)) == [f"no connected machine offers {MODEL}"]
