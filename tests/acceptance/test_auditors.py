"""The books over HTTP and on the command line, for those who may read them and those who may change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result
from nacl.signing import VerifyKey

from adapters.postgres import credentials, roles
from api.auditors.desk import PREFIX
from api.auditors.routes import ROUTERS
from api.cli import main
from projections.audit.holds import HoldHistory
from projections.audit.marks import TrialBalanceMarks
from projections.journal import JournalLines
from projections.runner import ProjectionRunner
from tests.support.ledger_commands import admit, grant, release, settled_request
from tests.support.ledger_writers import running
from tests.support.processes import Coordinator, eventually

"""What docs/how-to/let-an-auditor-in.md grants; nothing more is needed."""


class Keys(NamedTuple):
    consumer: str
    auditor: str
    admin: str
    second_admin: str


class Endpoint(NamedTuple):
    method: str
    path: str
    needs_admin: bool


def endpoints() -> list[Endpoint]:
    found = []
    for router in ROUTERS:
        for route in router.routes:
            method = next(iter(route.methods))  # type: ignore[attr-defined]
            path: str = route.path  # type: ignore[attr-defined]
            needs_admin = method == "POST" and not path.endswith("/replay")
            found.append(Endpoint(method, path, needs_admin))
    return found


def filled(path: str) -> str:
    values = {"account_id:path": "nobody", "entry_id:path": "credit:none", "period": "2020-01"}
    for name in ("run_id", "adjustment_id"):
        values[name] = str(uuid4())
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path
    return path


@pytest.fixture(scope="module")
def keys(up: Coordinator) -> Keys:
    with psycopg.connect(up.books.dsn, autocommit=True) as connection:
        made = [
            credentials.create_api_key(connection, f"acct_{role}", "test", role).secret
            for role in ("consumer", "auditor", "admin", "admin")
        ]
    return Keys(*made)


@pytest.fixture(scope="module")
def traded(up: Coordinator) -> Generator[str, None, None]:
    """An account with a history: credit, two settlements and a hold that a gateway with a lease keeps open."""
    name = f"acct_{uuid4().hex[:8]}"
    held = admit(name, 250, gateway_id=uuid4())
    with running(up.books.dsn) as writer, psycopg.connect(up.books.dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO gateways (gateway_id, internal_url, lease_until) VALUES (%s, '', now() + interval '1 hour')",
            (held.gateway_id,),
        )
        writer.execute(grant(name, 5_000_000))
        settled_request(writer, name, hold=1_000, cost=700, provider=f"{name}-studio")
        settled_request(writer, name, hold=1_000, cost=300)
        writer.execute(held)
        yield name
        writer.execute(release(name, held.request_id))
        connection.execute("DELETE FROM gateways WHERE gateway_id = %s", (held.gateway_id,))


@pytest.fixture
def auditor(up: Coordinator, keys: Keys) -> Generator[httpx.Client, None, None]:
    with up.client(keys.auditor) as client:
        yield client


@pytest.fixture
def admin(up: Coordinator, keys: Keys) -> Generator[httpx.Client, None, None]:
    with up.client(keys.admin) as client:
        yield client


@pytest.fixture
def second_admin(up: Coordinator, keys: Keys) -> Generator[httpx.Client, None, None]:
    with up.client(keys.second_admin) as client:
        yield client


# --- who may do what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", endpoints(), ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_an_endpoint_opens_for_the_roles_that_it_is_for(up: Coordinator, keys: Keys, endpoint: Endpoint) -> None:
    path = filled(endpoint.path)
    answers = {}
    for who, key in (("nobody", ""), *keys._asdict().items()):
        with up.client(key) as client:
            answers[who] = client.request(endpoint.method, path)

    assert answers["nobody"].status_code == 401
    assert answers["consumer"].status_code == 403
    assert answers["consumer"].json()["error"]["type"] == "forbidden"
    assert (answers["auditor"].status_code == 403) == endpoint.needs_admin
    for answer in (answers["admin"], answers["auditor"]):
        assert answer.status_code in ((403,) if answer.status_code == 403 else (200, 202, 400, 404, 409, 503))
    assert answers["admin"].status_code not in (401, 403)


@pytest.mark.parametrize("role", ["auditor", "admin"])
def test_keys_that_read_the_books_run_no_inference(up: Coordinator, keys: Keys, role: str) -> None:
    ask = {"model": "mlx-community/MiniMax-M2.5-8bit", "messages": [{"role": "user", "content": "hello"}]}
    with up.client(keys._asdict()[role]) as client:
        refused = client.post("/v1/chat/completions", json=ask)
    assert refused.status_code == 403
    assert "consumer key" in refused.json()["error"]["message"]


def test_every_call_is_noted_without_what_the_endpoint_does_not_know(up: Coordinator, auditor: httpx.Client) -> None:
    before = up.books.value("SELECT coalesce(max(access_id), 0) FROM audit_accesses")
    auditor.get(f"{PREFIX}/trial-balance", params={"at": "2026-05-01T00:00:00Z", "api_key": "s3cret"})
    auditor.get(f"{PREFIX}/accounts/acct_x/statement", params={"limit": "5"})

    noted = up.books.rows(
        "SELECT endpoint, parameters FROM audit_accesses WHERE access_id > %s ORDER BY access_id", before
    )
    assert noted == [
        (f"GET {PREFIX}/trial-balance", {"at": "2026-05-01T00:00:00Z"}),
        (f"GET {PREFIX}/accounts/{{account_id:path}}/statement", {"account_id": "acct_x", "limit": "5"}),
    ]


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/trial-balance?at=yesterday", "at"),
        ("/trial-balance?at=2100-01-01T00:00:00Z", "at"),
        ("/trial-balance?position=-1", "position"),
        ("/trial-balance?position=99999999999", "position"),
        ("/trial-balance?basis=cash", "basis"),
        ("/trial-balance?position=1&position=2", "position"),
        ("/trial-balance?position=1&at=2026-05-01T00:00:00Z", "position"),
        ("/entries?code=9999", "code"),
        ("/entries?limit=1001", "limit"),
        ("/entries?cursor=nonsense", "cursor"),
        ("/entries?from=2026-05-02T00:00:00Z&to=2026-05-01T00:00:00Z", "to"),
        ("/export?what=secrets", "what"),
        ("/export?format=xml", "format"),
        ("/holds?older_than_seconds=old", "older_than_seconds"),
        ("/replay/17", "run_id"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(auditor: httpx.Client, path: str, param: str) -> None:
    refused = auditor.get(PREFIX + path)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_trial_balance_is_asked_for_again_at_its_position(auditor: httpx.Client, traded: str) -> None:
    now = auditor.get(f"{PREFIX}/trial-balance").json()
    again = auditor.get(f"{PREFIX}/trial-balance", params={"position": now["position"]}).json()

    assert now["chain_hash"] in (None, again["chain_hash"])  # the tree follows the log in a moment
    assert again == now | {"final": True, "chain_hash": again["chain_hash"]}
    assert now["balanced"]
    assert (
        now["total_debit_micro_usd"]
        == now["total_credit_micro_usd"]
        == sum(line["debit_micro_usd"] for line in now["lines"])
    )
    assert now["committed_holds_micro_usd"] >= 250
    assert {line["code"]: line["class"] for line in now["lines"]}["2005"] == "liability"
    digest = {
        "basis": "recorded",
        "lines": [[line["code"], line["debit_micro_usd"], line["credit_micro_usd"]] for line in now["lines"]],
    }
    assert now["trial_balance_sha256"] == hashlib.sha256(json.dumps(digest, separators=(",", ":")).encode()).hexdigest()


def test_a_statement_and_its_entries_tell_one_story(auditor: httpx.Client, traded: str) -> None:
    told = auditor.get(f"{PREFIX}/accounts/{traded}/statement").json()
    assert [line["amount_micro_usd"] for line in told["lines"]] == [5_000_000, -700, -300]
    assert told["closing"]["balance_micro_usd"] == 4_999_000
    assert told["closing"]["held_micro_usd"] == 250

    found = auditor.get(f"{PREFIX}/entries", params={"account": traded, "kind": "settlement"}).json()["entries"]
    assert [entry["entry_id"] for entry in found] == [line["entry_id"] for line in told["lines"][1:]]
    one = auditor.get(f"{PREFIX}/entries/settle:{found[0]['reference']}").json()
    assert one["entry"] == found[0]
    topics = [event["topic"] for event in one["causing_events"]]
    assert "InferenceRequest.RequestSettled" in topics or not one["envelope"]["correlation_id"]


@pytest.mark.parametrize("path", ["/accounts/a%00b/statement", "/entries/%00", "/entries?reference=%00"])
def test_a_zero_byte_is_refused(auditor: httpx.Client, path: str) -> None:
    assert auditor.get(PREFIX + path).status_code == 400


def test_an_unknown_account_or_entry_is_not_found(auditor: httpx.Client) -> None:
    for path in ("/accounts/nobody/statement", "/entries/settle:nothing", f"/replay/{uuid4()}"):
        answer = auditor.get(PREFIX + path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")


def test_an_export_streams_to_its_trailer(auditor: httpx.Client, traded: str) -> None:
    answer = auditor.get(f"{PREFIX}/export", params={"what": "events"})
    *lines, last = answer.content.splitlines(keepends=True)
    trailer = json.loads(last)["trailer"]
    assert trailer["rows"] == len(lines) == trailer["last_position"]
    assert trailer["sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()


def test_the_signed_head_the_root_and_the_range_agree(up: Coordinator, auditor: httpx.Client, traded: str) -> None:
    def signed() -> dict[str, Any] | None:
        answer = auditor.get(f"{PREFIX}/audit/head")
        return answer.json() if answer.status_code == 200 else None

    head = eventually(signed, "a checkpoint to be signed")
    # The trial balance of that position names the very root that was signed,
    balance = auditor.get(f"{PREFIX}/trial-balance", params={"position": head["position"]}).json()
    assert balance["chain_hash"] == head["chain_hash"]
    # the signature is over the published note,
    note = auditor.get("/v1/transparency/checkpoint", params={"size": head["position"]}).text
    text = note.partition("\n\n")[0] + "\n"
    VerifyKey(bytes.fromhex(head["public_key"])).verify(text.encode(), bytes.fromhex(head["signature"]))
    # and every event up to there is still the leaf that it was.
    verified = auditor.get(f"{PREFIX}/audit/verify", params={"to": head["position"]}).json()
    assert verified == {
        "ok": True,
        "from": 1,
        "to": head["position"],
        "events": head["position"],
        "head": verified["head"],
        "first_bad_position": None,
    }


def test_a_replay_compares_every_read_model(auditor: httpx.Client, traded: str) -> None:
    started = auditor.post(f"{PREFIX}/replay", json={"projections": ["journal_lines", "wallet_balances"]})
    assert started.status_code == 202

    def ended() -> dict[str, Any] | None:
        found = auditor.get(f"{PREFIX}/replay/{started.json()['run_id']}").json()
        return found if found["status"] != "running" else None

    run = eventually(ended, "the replay to end")
    assert run["status"] == "finished"
    assert {one["name"]: one["identical"] for one in run["projections"]} == {
        "journal_lines": True,
        "wallet_balances": True,
    }
    assert all(one["live_sha256"] == one["replayed_sha256"] for one in run["projections"])


# --- changing --------------------------------------------------------------------------------------------------------


def test_two_admins_adjust_a_wallet(
    up: Coordinator, admin: httpx.Client, second_admin: httpx.Client, auditor: httpx.Client, traded: str
) -> None:
    balance = up.books.balance(traded)[0]
    proposal = {
        "adjustment_id": str(uuid4()),
        "account_id": traded,
        "bucket": "promotional",
        "amount_micro_usd": -1_000,
        "reason": "promotion",
        "reference": "ticket 12",
    }
    proposed = admin.post(f"{PREFIX}/adjustments", json=proposal)
    assert proposed.json()["status"] == "proposed"
    assert admin.post(f"{PREFIX}/adjustments", json=proposal).json() == proposed.json()
    path = f"{PREFIX}/adjustments/{proposal['adjustment_id']}"

    alone = admin.post(f"{path}/approve")
    assert (alone.status_code, alone.json()["error"]["type"]) == (403, "forbidden")
    assert up.books.balance(traded)[0] == balance

    approved = second_admin.post(f"{path}/approve").json()
    assert approved["status"] == "approved"
    assert approved["decided_by"] != approved["proposed_by"]
    assert up.books.balance(traded)[0] == balance - 1_000  # type: ignore[operator]
    assert second_admin.post(f"{path}/approve").json() == approved
    assert second_admin.post(f"{path}/reject", json={}).status_code == 409

    listed = auditor.get(f"{PREFIX}/adjustments", params={"status": "approved"}).json()["adjustments"]
    assert approved in listed
    entry = auditor.get(f"{PREFIX}/entries/adjust:{proposal['adjustment_id']}").json()
    assert entry["entry"]["entry_id"] == approved["entry_id"]
    up.books.require_balanced()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"bucket": "savings"}, 400),
        ({"amount_micro_usd": 1.5}, 400),
        ({"amount_micro_usd": True}, 400),
        ({"colour": "green"}, 400),
        ({"effective_at": "yesterday"}, 400),
        ({"effective_at": "2026-05-01T00:00:00"}, 400),
        ({"effective_at": "2100-05-01T00:00:00Z"}, 400),
        ({"reference": "zero\x00byte"}, 400),
        ({"account_id": "nobody"}, 404),
        ({"amount_micro_usd": -(10**14)}, 200),
    ],
)
def test_a_bad_proposal_changes_nothing(
    admin: httpx.Client, second_admin: httpx.Client, traded: str, change: dict[str, Any], status: int
) -> None:
    proposal = {
        "account_id": traded,
        "bucket": "promotional",
        "amount_micro_usd": 1,
        "reason": "promotion",
        "reference": "ticket 12",
    }
    answer = admin.post(f"{PREFIX}/adjustments", json=proposal | change)
    assert answer.status_code == status
    if status == 200:  # more than the wallet holds: found out when it would move
        approved = second_admin.post(f"{PREFIX}/adjustments/{answer.json()['adjustment_id']}/approve")
        assert (approved.status_code, approved.json()["error"]["type"]) == (409, "conflict")


def test_a_closed_period_keeps_its_trial_balance(
    admin: httpx.Client, second_admin: httpx.Client, auditor: httpx.Client, traded: str
) -> None:
    last_month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(microseconds=1)
    period = f"{last_month:%Y-%m}"
    proposal = {
        "account_id": traded,
        "bucket": "promotional",
        "amount_micro_usd": 5,
        "reason": "loss",
        "reference": "ticket 13",
        "effective_at": last_month.isoformat(),
    }
    late = admin.post(f"{PREFIX}/adjustments", json=proposal).json()
    dated = admin.post(f"{PREFIX}/adjustments", json=proposal).json()
    assert second_admin.post(f"{PREFIX}/adjustments/{dated['adjustment_id']}/approve").status_code == 200

    closing = admin.post(f"{PREFIX}/periods/{period}/close")
    assert closing.status_code == 200
    assert second_admin.post(f"{PREFIX}/periods/{period}/close").json() == closing.json()
    refused = second_admin.post(f"{PREFIX}/adjustments/{late['adjustment_id']}/approve")
    assert (refused.status_code, "closed" in refused.json()["error"]["message"]) == (409, True)

    at = {"at": last_month.isoformat().replace("+00:00", "Z"), "basis": "effective"}
    effective = auditor.get(f"{PREFIX}/trial-balance", params=at).json()
    assert effective["trial_balance_sha256"] == closing.json()["trial_balance_sha256"]
    assert closing.json() in auditor.get(f"{PREFIX}/periods").json()["periods"]
    now = f"{datetime.now(UTC):%Y-%m}"
    assert admin.post(f"{PREFIX}/periods/{now}/close").status_code == 409
    assert admin.post(f"{PREFIX}/periods/2026-13/close").status_code == 400


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader_url(up: Coordinator, traded: str) -> Generator[str, None, None]:
    """The database as an auditor's role sees it."""
    role = f"reader_{uuid4().hex[:8]}"
    with psycopg.connect(up.books.dsn, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reader'")
        roles.grant(up.books.dsn, auditor=role)
        eventually(
            lambda: (
                owner.execute(
                    "SELECT min(position) = (SELECT position FROM ledger_head) FROM projection_tracking"
                ).fetchone()
                == (True,)
            ),
            "the projections to catch up",
        )
        host = owner.info.host
        yield f"postgresql://{role}:reader@{host}:{owner.info.port}/{owner.info.dbname}"
        owner.execute(f"DROP OWNED BY {role}")
        owner.execute(f"DROP ROLE {role}")


def audit(*words: str) -> Result:
    return CliRunner().invoke(main, ["audit", *words], catch_exceptions=False)


def test_a_role_that_may_only_read_asks_everything(reader_url: str, traded: str, tmp_path: Path) -> None:
    on = ("--database-url", reader_url)
    told = audit("trial-balance", *on)
    assert told.exit_code == 0
    assert "balanced" in told.output

    found = json.loads(audit("trial-balance", *on, "--json").output)
    position = str(found["position"])
    plain = json.loads(audit("trial-balance", *on, "--json", "--position", position, "--from-events").output)
    assert plain == found | {"final": True}

    story = json.loads(audit("statement", traded, *on, "--json").output)
    assert story["closing"]["held_micro_usd"] == 250
    assert "opening balance 0.000000 USD" in audit("statement", traded, *on).output
    settled = next(line for line in story["lines"] if line["kind"] == "settlement")
    assert "2100 Provider payable" in audit("entry", settled["entry_id"], *on).output
    assert f"settle:{settled['reference']}" in audit("search", "--reference", settled["reference"], *on).output
    assert traded in audit("holds", *on).output
    assert audit("periods", *on).exit_code == 0
    assert audit("adjust", "list", *on).exit_code == 0

    for what in ("entries", "events", "usage", "earnings", "withdrawals"):
        file = tmp_path / f"{what}.csv"
        assert audit("export", str(file), "--what", what, "--format", "csv", *on).exit_code == 0
        *lines, last = file.read_bytes().splitlines(keepends=True)
        trailer = json.loads(last.removeprefix(b"# "))["trailer"]
        assert trailer["sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()
    assert [path.suffix for path in tmp_path.iterdir()] == [".csv"] * 5


def test_a_role_that_may_only_read_changes_nothing(reader_url: str, keys: Keys) -> None:
    answer = audit("close-period", "2020-01", "--database-url", reader_url, "--admin-key", keys.admin)
    assert answer.exit_code == 1
    assert "permission denied" in answer.output


def test_two_admins_adjust_on_the_command_line(up: Coordinator, keys: Keys, traded: str) -> None:
    on = ("--database-url", up.books.dsn, "--json")
    balance = up.books.balance(traded)[0]
    details = ("--account", traded, "--bucket", "promotional", "--reason", "loss", "--reference", "ticket 14")
    made = audit("adjust", "propose", *details, "--amount", "-0.000005", *on, "--admin-key", keys.admin)
    adjustment_id = json.loads(made.output)["adjustment_id"]

    alone = audit("adjust", "approve", adjustment_id, *on, "--admin-key", keys.admin)
    assert (alone.exit_code, "another admin" in alone.output) == (1, True)
    no_admin = audit("adjust", "approve", adjustment_id, *on, "--admin-key", keys.auditor)
    assert (no_admin.exit_code, "admin key" in no_admin.output) == (1, True)
    assert up.books.balance(traded)[0] == balance

    assert audit("adjust", "approve", adjustment_id, *on, "--admin-key", keys.second_admin).exit_code == 0
    assert up.books.balance(traded)[0] == balance - 5  # type: ignore[operator]


def test_the_command_line_closes_a_period_and_says_when_it_cannot(up: Coordinator, keys: Keys) -> None:
    on = ("--database-url", up.books.dsn, "--admin-key", keys.admin)
    first = audit("close-period", "2020-02", *on)
    assert first.exit_code == 0
    assert audit("close-period", "2020-02", *on).output == first.output
    assert "2020-02" in audit("periods", "--database-url", up.books.dsn).output
    assert "not over" in audit("close-period", "2099-12", *on).output
    assert "2026-05" in audit("close-period", "may", *on).output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("trial-balance", "--at", "yesterday"), "is not a time"),
        (("trial-balance", "--at", "2026-05-01T00:00:00Z", "--position", "1"), "exclude each other"),
        (("search", "--min-usd", "much"), "amount of dollars"),
        (("statement",), "Missing argument"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(words: tuple[str, ...], text: str) -> None:
    answer = CliRunner().invoke(main, ["audit", *words])
    assert answer.exit_code == 2
    assert text in answer.output


def test_a_bent_table_is_found_out_by_the_events_alone(database: str) -> None:
    with running(database) as writer:
        writer.execute(grant("acct_1", 500))
    ProjectionRunner(database, [JournalLines(), TrialBalanceMarks(), HoldHistory()]).catch_up()
    on = ("--database-url", database)
    assert audit("trial-balance", *on).exit_code == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE journal_lines SET credit_micro_usd = 400 WHERE credit_micro_usd = 500")

    bent = audit("trial-balance", *on)
    assert (bent.exit_code, "NOT BALANCED" in bent.output) == (1, True)
    assert audit("trial-balance", *on, "--from-events").exit_code == 0


def test_the_books_of_an_embedded_database_are_read_while_nothing_runs(tmp_path: Path) -> None:
    on = ("--data-dir", str(tmp_path / "data"))
    made = CliRunner().invoke(main, ["keys", "create", "--account", "acct_1", "--credit", "5", *on])
    assert made.exit_code == 0
    told = json.loads(audit("trial-balance", *on, "--json").output)
    assert {line["code"]: line["balance_micro_usd"] for line in told["lines"]} == {"2005": 5_000_000, "5000": 5_000_000}
