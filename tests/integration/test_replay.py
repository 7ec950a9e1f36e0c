"""Replaying the log gives the live tables again, to the last bit, and finds every row that the log does not say."""

from __future__ import annotations

import itertools
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import suppress
from random import Random
from uuid import uuid4

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from adapters.postgres.writer import LedgerWriter
from domain.adjusting import ApproveAdjustment, ProposeAdjustment
from domain.adjustments import REASON_CODES
from domain.errors import DarkbloomError
from domain.eventsourced import Actor
from domain.ledger import Settle
from domain.requests import RequestSettled
from projections import diff as diff_module
from projections import runner as runner_module
from projections.balances import BalancesReplay
from projections.diff import Compared, replay_and_compare
from projections.doctor import examine
from projections.page import EventNotReadable
from projections.registry import INLINE, LAGGING, READ_MODELS, UnknownProjection, lagging, replaying
from projections.runner import ProjectionRunner
from projections.usage_totals import network_usage
from tests.support.broken_builds import stores_another_amount
from tests.support.ledger_commands import account, admit, dispatch, grant, settle
from tests.support.ledger_tables import head_of, log_of, wallets
from tests.support.ledger_waiting import Connection, in_thread
from tests.support.ledger_writers import running
from tests.support.random_business import do_business, random_commands
from tests.support.tampering import past_the_guard

pytest_plugins = ["tests.support.ledger_fixtures"]

OPERATIONS = int(os.environ.get("OPERATIONS", "3000"))
"""``make replay-campaign OPERATIONS=100000`` does more of the same."""

SEED = int(os.environ.get("SEED", "0")) or secrets.randbits(32)


def catch_up(url: str) -> None:
    ProjectionRunner(url, lagging()).catch_up()


def by_name(compared: list[Compared]) -> dict[str, Compared]:
    return {one.name: one for one in compared}


def differing(compared: list[Compared]) -> dict[str, str | None]:
    return {one.name: one.first_difference for one in compared if not one.identical}


# --- the same whatever happens ---------------------------------------------------------------------------------------


def test_a_replay_gives_the_live_tables_whatever_the_pages_and_restarts_were(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {SEED}")
    # Given a random business during which runners come and go with pages of all sizes
    random = Random(SEED)
    rounds = 10
    for number in range(rounds):
        do_business(writer, OPERATIONS // rounds, SEED + number)
        monkeypatch.setattr(runner_module, "PAGE_EVENTS", random.choice((7, 100, 5_000)))
        catch_up(ledger)
    # When it is replayed in pages of other sizes
    replays = [by_name(replay_and_compare(ledger, page_events=size)) for size in (61, 997, 20_000)]
    # Then each replay gives the live rows.
    for compared in replays:
        assert differing(list(compared.values())) == {}
        assert compared.keys() == READ_MODELS.keys()
        assert {one.position for one in compared.values()} == {head_of(look)}
        assert all(one.rows > 0 for one in compared.values())
        assert all(one.replayed_sha256 == replays[0][name].replayed_sha256 for name, one in compared.items())
    assert_totals_are_a_fold_over_the_settlements(look)


def assert_totals_are_a_fold_over_the_settlements(look: Connection) -> None:
    """Invariant 12, with a fold that shares no code with the projections."""
    settled = [event.payload for event in log_of(look) if event.name == "RequestSettled"]
    paid = [one for one in settled if not one["free"]]
    earned = [one for one in settled if one["provider_amount"]]
    assert network_usage(look) == (
        len(paid),
        sum(one["prompt_tokens"] for one in paid),
        sum(one["completion_tokens"] for one in paid),
        sum(one["cost"] for one in paid),
    )
    minutes = Counter(one["occurred_at"][:16] for one in paid)
    stored = look.execute(
        "SELECT to_char(minute AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI'), requests FROM usage_minute"
    )
    assert dict(stored.fetchall()) == minutes
    totals: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    days: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in earned:
        add(totals[one["provider_account_id"], one["machine_id"]], one["provider_amount"], 1)
        if one["provider_account_id"]:
            day = days[one["occurred_at"][:10], one["provider_account_id"]]
            add(day, one["provider_amount"], one["prompt_tokens"] + one["completion_tokens"], 1)
    assert totals == {
        (row[0], row[1]): list(row[2:])
        for row in look.execute("SELECT account_id, machine_id, amount_micro_usd, jobs FROM earning_totals")
    }
    assert days == {
        (row[0], row[1]): list(row[2:])
        for row in look.execute("SELECT day::text, account_id, earnings_micro_usd, tokens, jobs FROM leaderboard_daily")
    }


def add(counters: list[int], *amounts: int) -> None:
    for index, amount in enumerate(amounts):
        counters[index] += amount


def test_the_last_line_of_each_account_is_what_its_wallet_holds(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    do_business(writer, 600, SEED)
    catch_up(ledger)

    last = look.execute(
        "SELECT DISTINCT ON (account_id) account_id, balance_after_micro_usd FROM ledger_lines "
        "ORDER BY account_id, position DESC"
    )
    held = {account_id: row.balance + row.held for account_id, row in wallets(look).items()}
    assert dict(last.fetchall()) == held
    sums = look.execute("SELECT account_id, sum(amount_micro_usd) FROM ledger_lines GROUP BY account_id").fetchall()
    assert dict(sums) == held
    assert {row[0] for row in look.execute("SELECT DISTINCT type FROM ledger_lines")} == {
        "admin_credit",
        "charge",
        "invite_credit",
        "payout",
    }


def test_wallets_that_do_not_fit_into_memory_are_set_aside_and_come_out_the_same(
    ledger: str, writer: LedgerWriter, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_business(writer, 600, SEED)
    set_aside: list[BalancesReplay] = []
    spill = BalancesReplay._set_aside
    monkeypatch.setattr(
        BalancesReplay, "_set_aside", lambda self, connection: (set_aside.append(self), spill(self, connection))
    )
    monkeypatch.setattr(diff_module, "replaying", lambda _: [BalancesReplay(wallets_max=3)])

    compared = replay_and_compare(ledger, page_events=20)

    assert len(set_aside) > 5
    assert differing(compared) == {}


def test_a_wallet_that_was_adjusted_by_hand_replays_too(ledger: str, writer: LedgerWriter, look: Connection) -> None:
    consumer = account()
    writer.execute(grant(consumer, 1_000))
    asked = ProposeAdjustment(
        actor=Actor("admin", "ann"),
        adjustment_id=uuid4(),
        account_id=consumer,
        bucket="purchased",
        amount_micro_usd=250,
        reason=next(iter(REASON_CODES)),
        reference="ticket",
    )
    writer.execute(asked)
    writer.execute(ApproveAdjustment(actor=Actor("admin", "bob"), adjustment_id=asked.adjustment_id))
    catch_up(ledger)

    assert wallets(look)[consumer].balance == 1_250
    assert differing(replay_and_compare(ledger)) == {}


def test_a_replay_beside_a_busy_writer_and_runner_compares_each_table_where_it_stands(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    runner = ProjectionRunner(ledger, lagging())
    runner.start()
    busy = in_thread(lambda: do_business(writer, 3_000, SEED))
    positions: set[int] = set()
    while not busy.done():
        compared = replay_and_compare(ledger, page_events=500)
        assert differing(compared) == {}
        positions |= {one.position for one in compared}
    busy.result(60)
    runner.stop()

    assert len(positions) > 1


def test_tables_at_different_positions_are_each_compared_at_their_own(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    do_business(writer, 200, SEED)
    ProjectionRunner(ledger, [LAGGING["usage_totals"]()]).catch_up()
    first = head_of(look)
    do_business(writer, 200, SEED + 1)
    ProjectionRunner(ledger, [LAGGING["journal_lines"]()]).catch_up()

    compared = replay_and_compare(ledger)

    assert differing(compared) == {}
    assert {one.name: one.position for one in compared} == (
        dict.fromkeys(LAGGING, 0) | dict.fromkeys([*INLINE, "journal_lines"], head_of(look)) | {"usage_totals": first}
    )


# --- logs of older builds --------------------------------------------------------------------------------------------

SINCE_VERSION_3 = ("cached_tokens", "claimed_cached_tokens")


def as_version_2(state: bytes) -> bytes:
    """An event that holds a quote or counts tokens, as it was stored before remembered tokens had a price."""
    said = msgspec.json.decode(state)
    for member in SINCE_VERSION_3:
        said.pop(member, None)
    if "quote" in said:
        del said["quote"]["cache_read_price"]
    return msgspec.json.encode(said | {"schema_version": 2})


def test_a_log_from_before_remembered_tokens_had_a_price_gives_the_same_tables_and_is_gone_on_with(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    # Given business in which nothing was remembered, and a request that is still open, stored by an older build
    for command in itertools.islice(random_commands(Random(SEED)), 400):
        if isinstance(command, Settle):
            command = msgspec.structs.replace(command, claimed_cached_tokens=0)  # noqa: PLW2901
        with suppress(DarkbloomError):
            writer.execute(command)
    consumer, request_id = account(), uuid4()
    writer.execute(grant(consumer, 1_000))
    writer.execute(msgspec.structs.replace(admit(consumer, 100, request_id), prompt_bound=500))
    writer.execute(dispatch(request_id))
    catch_up(ledger)
    before = {one.name: one.live_sha256 for one in replay_and_compare(ledger)}
    states = look.execute("SELECT position, state FROM events WHERE state LIKE '%\"schema_version\":3%'").fetchall()
    older = {position: as_version_2(state) for position, state in states}
    assert len(older) > 20
    with past_the_guard(look):
        for position, state in older.items():
            look.execute("UPDATE events SET state = %s WHERE position = %s", (state, position))
    # When it is replayed, then each table is what it was, to the last bit, and the doctor finds nothing.
    replayed = replay_and_compare(ledger)
    assert differing(replayed) == {}
    assert {one.name: one.replayed_sha256 for one in replayed} == before
    assert examine(look).healthy
    # And a build of today ends the open request at the old quote: what was remembered costs what it always did.
    with running(ledger) as newer:
        asked = settle(consumer, request_id, 100)
        end = newer.execute(msgspec.structs.replace(asked, claimed_prompt_tokens=500, claimed_cached_tokens=400))
    assert isinstance(end, RequestSettled)
    assert (end.cost, end.cached_tokens) == (600, 400)
    catch_up(ledger)
    assert differing(replay_and_compare(ledger)) == {}
    assert dict(look.execute("SELECT position, state FROM events").fetchall()).items() >= older.items()


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(ledger: str, writer: LedgerWriter) -> str:
    """A ledger with some business, and tables that are at its head."""
    do_business(writer, 400, 7)
    catch_up(ledger)
    return ledger


def test_a_row_that_was_changed_by_hand_is_found_and_named(kept: str, look: Connection) -> None:
    row = look.execute(
        "UPDATE journal_lines SET debit_micro_usd = debit_micro_usd + 1 WHERE (position, line) = "
        "(SELECT position, line FROM journal_lines ORDER BY 1, 2 OFFSET 5 LIMIT 1) "
        "RETURNING position, line, debit_micro_usd"
    ).fetchone()
    assert row is not None

    compared = replay_and_compare(kept)

    assert differing(compared) == {
        "journal_lines": f"position={row[0]}, line={row[1]}: live has debit_micro_usd={row[2]}, "
        f"the log says debit_micro_usd={row[2] - 1}"
    }
    found = by_name(compared)["journal_lines"]
    assert found.live_sha256 != found.replayed_sha256


@pytest.mark.parametrize("table", sorted(READ_MODELS))
def test_a_change_in_any_table_is_found(kept: str, look: Connection, table: str) -> None:
    column = look.execute(
        "SELECT attname FROM pg_attribute a WHERE attrelid = %s::regclass AND attnum > 0 "
        "AND atttypid = 'int8'::regtype AND NOT EXISTS "
        "(SELECT FROM pg_index WHERE indrelid = a.attrelid AND indisprimary AND a.attnum = ANY(indkey)) "
        "ORDER BY attnum DESC LIMIT 1",
        (table,),
    ).fetchone()
    assert column is not None
    first_row = f"(SELECT ctid FROM {table} ORDER BY ctid LIMIT 1)"
    look.execute(f"UPDATE {table} SET {column[0]} = coalesce({column[0]}, 0) + 1 WHERE ctid = {first_row}")

    found = differing(replay_and_compare(kept))

    assert found.keys() == {table}
    assert column[0] in str(found[table])


def test_a_build_that_stores_something_else_than_it_decided_is_found(
    ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores_another_amount(monkeypatch)
    with running(ledger) as writer:
        consumer = account()
        writer.execute(grant(consumer, 1_000))
        writer.execute(admit(consumer, 99))
    catch_up(ledger)
    assert "held_micro_usd=99" in str(differing(replay_and_compare(ledger))["wallet_balances"])


def test_a_row_that_was_deleted_is_missing(kept: str, look: Connection) -> None:
    gone = look.execute(
        "DELETE FROM usage_entries WHERE job_id = (SELECT job_id FROM usage_entries ORDER BY 1 OFFSET 3 LIMIT 1) "
        "RETURNING job_id"
    ).fetchone()
    assert gone is not None

    assert str(differing(replay_and_compare(kept))["usage_entries"]).startswith(
        f"missing in the live table: job_id={gone[0]}, account_id="
    )


def test_a_row_that_no_event_tells_of_is_only_in_the_live_table(kept: str, look: Connection) -> None:
    look.execute(
        "INSERT INTO wallet_balances VALUES ('acct_!', 1, 5, 0, 0)"  # sorts before the others
    )

    assert differing(replay_and_compare(kept)) == {
        "wallet_balances": "only in the live table: account_id=acct_!, wallet_version=1, balance_micro_usd=5, "
        "withdrawable_micro_usd=0, held_micro_usd=0"
    }


def test_a_last_row_on_one_side_only_is_found_too(kept: str, look: Connection) -> None:
    look.execute("INSERT INTO usage_totals VALUES ('zzz', 1, 1, 1, 1)")
    assert "only in the live table: model=zzz" in str(differing(replay_and_compare(kept))["usage_totals"])

    look.execute("DELETE FROM usage_totals WHERE model IN ('zzz', 'model-2')")
    assert "missing in the live table: model=model-2" in str(differing(replay_and_compare(kept))["usage_totals"])


# --- how it is asked -------------------------------------------------------------------------------------------------


def test_only_the_named_tables_are_replayed(kept: str) -> None:
    assert [one.name for one in replay_and_compare(kept, ["usage_minute"])] == ["usage_minute"]
    with pytest.raises(UnknownProjection, match=r"no read model 'wallets'; there are earning_totals, "):
        replay_and_compare(kept, ["wallets"])


def test_an_earlier_position_is_replayed_without_a_verdict(kept: str, look: Connection) -> None:
    then = head_of(look) // 2

    early = by_name(replay_and_compare(kept, to_position=then))
    now = by_name(replay_and_compare(kept, to_position=head_of(look)))

    assert {(one.position, one.live_sha256, one.identical) for one in early.values()} == {(then, None, None)}
    assert 0 < early["journal_lines"].rows < now["journal_lines"].rows
    assert all(one.identical for one in now.values())


@pytest.fixture
def reader(kept: str, look: Connection) -> Generator[str, None, None]:
    """The URL for a user who may read every table and make temporary ones."""
    role = f"darkbloom_test_reader_{secrets.token_hex(4)}"
    look.execute(f"CREATE ROLE {role}")
    look.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    yield make_conninfo(kept, options=f"-c role={role}")
    look.execute(f"DROP OWNED BY {role}")
    look.execute(f"DROP ROLE {role}")


def test_read_access_is_enough(reader: str) -> None:
    with psycopg.connect(reader, autocommit=True) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("UPDATE usage_totals SET requests = 0")

    assert differing(replay_and_compare(reader)) == {}


def test_a_replay_leaves_nothing_behind(kept: str, look: Connection) -> None:
    before = look.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relpersistence <> 't'").fetchall()

    replay_and_compare(kept)

    after = look.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relpersistence <> 't'").fetchall()
    assert after == before


def test_an_event_that_cannot_be_read_ends_the_replay_with_its_position(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    writer.execute(grant(account(), 5))
    with past_the_guard(look):
        look.execute("UPDATE events SET state = 'x' WHERE position = 1")

    with pytest.raises(EventNotReadable, match="the event at position 1 "):
        replay_and_compare(ledger)


def test_every_read_model_replays_its_own_table() -> None:
    assert [projection.name for projection in replaying()] == list(READ_MODELS)
    assert all(len(set(projection.events)) == len(projection.events) > 0 for projection in replaying())
