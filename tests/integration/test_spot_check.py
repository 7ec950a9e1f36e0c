"""The check that walks through the wallets finds what was changed behind the writer's back, and stops all writers."""

from __future__ import annotations

import pytest

from domain.errors import LedgerHalted
from projections import spot_check
from projections.registry import lagging
from projections.runner import ProjectionRunner
from projections.spot_check import SpotCheck
from tests.support.busy_day import run_day
from tests.support.ledger_commands import account, admit, grant
from tests.support.ledger_tables import assert_books_are_sound, head_of
from tests.support.ledger_waiting import Connection, until
from tests.support.ledger_writers import running
from tests.support.tampering import past_the_guard

pytest_plugins = ["tests.support.ledger_fixtures"]

SECONDS = 0.01


def do_business(ledger: str) -> None:
    with running(ledger) as writer:
        run_day(writer)
    ProjectionRunner(ledger, lagging()).catch_up()


def test_sound_books_stop_nobody_also_while_the_journal_lags(ledger: str, look: Connection) -> None:
    do_business(ledger)
    with running(ledger) as writer:
        run_day(writer, seed=2)
        assert [*SpotCheck(ledger, seconds=SECONDS).look()] == []
        writer.execute(grant("ada", 1))
    assert look.execute("SELECT count(*) FROM ledger_stops").fetchone() == (0,)


def test_a_ledger_without_wallets_or_projections_is_nothing_to_worry_about(ledger: str) -> None:
    assert [*SpotCheck(ledger, seconds=SECONDS).look()] == []
    with running(ledger) as writer:
        writer.execute(grant("ada", 100))
        assert [*SpotCheck(ledger, seconds=SECONDS).look()] == []


TAMPERING = {
    "a balance": ("UPDATE wallet_balances SET balance_micro_usd = balance_micro_usd + 1 WHERE account_id = 'ada'", 12),
    "a hold": ("UPDATE wallet_balances SET held_micro_usd = held_micro_usd + 1 WHERE account_id = 'ada'", 12),
    "a balance that nobody has": ("INSERT INTO wallet_balances VALUES ('mallory', 1, 5, 5, 0)", 12),
    "an event that is gone": (
        "DELETE FROM events WHERE topic = 'Wallet.PromotionalCreditGranted' AND position = "
        "(SELECT min(position) FROM events WHERE topic = 'Wallet.PromotionalCreditGranted')",
        12,
    ),
    "the journal": (
        "UPDATE sub_account_balances SET credit_micro_usd = credit_micro_usd + 1 WHERE sub_account = 'ada' "
        "AND account_code = '2005'",
        4,
    ),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_what_was_tampered_with_stops_every_writer(
    what: str, ledger: str, look: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    statement, number = TAMPERING[what]
    do_business(ledger)
    with running(ledger) as one, running(ledger) as other:
        # Given two writers at work, and a table that somebody changes
        one.execute(grant("zoe", 1))
        other.execute(grant("zoe", 1))
        with past_the_guard(look):
            assert look.execute(statement).rowcount > 0
        before = head_of(look)
        # When the wallet's turn comes,
        check = SpotCheck(ledger, seconds=SECONDS)
        found = until(check.look, "the check finds it")
        assert found[0].invariant == number
        # then neither writes anything more,
        for writer in (one, other):
            with pytest.raises(LedgerHalted):
                writer.execute(grant("zoe", 1))
            assert writer.halted
        assert head_of(look) == before
    # the table of stops and the log say why, with ids and without amounts,
    ((stop, finding),) = look.execute("SELECT stop, finding FROM ledger_stops").fetchall()
    assert (stop, finding) == (1, str(found[0]))
    assert any(finding in record.getMessage() for record in caplog.records if record.levelname == "CRITICAL")
    # and whoever starts again goes on.
    with running(ledger) as writer:
        writer.execute(grant("zoe", 1))


def test_a_writer_that_had_nothing_to_do_yet_is_stopped_too(ledger: str, look: Connection) -> None:
    do_business(ledger)
    with running(ledger) as idle:
        until(lambda: idle._stops is not None, "it has begun")
        look.execute("UPDATE wallet_balances SET held_micro_usd = held_micro_usd + 1")
        assert SpotCheck(ledger, seconds=SECONDS).look()
        with pytest.raises(LedgerHalted):
            idle.execute(grant("zoe", 1))


def test_every_wallets_turn_comes(ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_check, "WALLETS", 3)
    accounts = [account(f"consumer-{number}") for number in range(10)]
    with running(ledger) as writer:
        for consumer in accounts:
            writer.execute(grant(consumer, 100))
            writer.execute(admit(consumer, 40))
    seen: list[str] = []
    check = SpotCheck(ledger, seconds=SECONDS)
    for _ in range(8):
        check.look()
        seen.append(str(check._after))
    assert "" in seen  # it began again at the first account
    look.execute("UPDATE wallet_balances SET held_micro_usd = 41 WHERE account_id = %s", (accounts[7],))
    assert until(check.look, "its turn comes")[0].subject == accounts[7]


def test_a_difference_that_is_gone_at_a_second_look_is_none(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_business(ledger)
    find, calls = spot_check.find, []

    def mistaken_once(connection: Connection, rows: list[tuple[object, ...]]) -> object:
        calls.append(rows)
        wrong = [(*row[:2], -1, *row[3:]) for row in rows]
        return find(connection, wrong if len(calls) == 1 else rows)

    monkeypatch.setattr(spot_check, "find", mistaken_once)
    assert [*SpotCheck(ledger, seconds=SECONDS).look()] == []
    assert len(calls) > 1
    with running(ledger) as writer:
        writer.execute(grant("ada", 1))
    assert_books_are_sound(look)


def test_it_runs_by_itself_until_it_is_stopped(ledger: str, look: Connection) -> None:
    do_business(ledger)
    look.execute("UPDATE wallet_balances SET held_micro_usd = held_micro_usd + 1")
    check = SpotCheck(ledger, seconds=SECONDS)
    check.start()
    try:
        until(lambda: look.execute("SELECT stop FROM ledger_stops").fetchone(), "it stops the writers")
    finally:
        check.stop()
