"""A build whose decisions are wrong is stopped before it commits, and stays stopped."""

from __future__ import annotations

import pytest

from domain.errors import LedgerHalted
from domain.ledger import Balance
from tests.support.broken_builds import Breakage, drops_a_journal_line, pays_without_an_entry
from tests.support.ledger_commands import account, grant, settled_request
from tests.support.ledger_tables import assert_books_are_sound, head_of
from tests.support.ledger_waiting import Connection
from tests.support.ledger_writers import first_batch, running

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.mark.parametrize("breakage", [drops_a_journal_line, pays_without_an_entry])
def test_a_batch_that_would_break_the_books_is_not_written_and_nothing_after_it(
    breakage: Breakage, ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a ledger with money in it, and a build that goes wrong from now on
    consumer = account()
    with running(ledger) as writer:
        writer.execute(grant(consumer, 1_000))
        before = head_of(look)
        with monkeypatch.context() as patch:
            breakage(patch)
            # When it decides what does not add up,
            with pytest.raises(LedgerHalted):
                settled_request(writer, consumer, hold=100, cost=60, provider="provider")
        # then nothing of that is in the log, nobody is served any more, and the log says why.
        with pytest.raises(LedgerHalted):
            writer.execute(grant(consumer, 1))
        assert writer.halted
    stopped = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert any("the ledger stops" in message for message in stopped)
    assert head_of(look) - before <= 3  # at most the admission and the dispatch, which were right
    # A new process goes on from the last good state.
    with running(ledger) as writer:
        assert not writer.halted
        assert isinstance(writer.execute(grant(consumer, 1)), Balance)
    assert_books_are_sound(look)


def test_who_waits_behind_a_broken_batch_is_told(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = account()
    drops_a_journal_line(monkeypatch)
    with first_batch(ledger, [grant(consumer, 1), grant(consumer, 2)]) as (_, answers):
        assert [type(answer) for answer in answers] == [LedgerHalted, LedgerHalted]
        assert head_of(look) == 0
