"""The doctor on a real database: sound books pass beside a running writer, broken builds and tampering are found."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adapters.postgres import writer as writer_module
from api.cli import main
from domain.eventsourced import Aggregate
from domain.invariants import INVARIANTS, BatchCheck
from projections import doctor as doctor_module
from projections.doctor import Diagnosis, Finding, examine
from projections.earnings import Earnings
from projections.journal import JournalLines
from projections.runner import ProjectionRunner
from projections.snapshot_check import SNAPSHOTTED
from tests.support.broken_builds import IN_THE_LOG, IN_THE_READ_MODELS, Breakage
from tests.support.busy_day import run_day
from tests.support.ledger_waiting import Connection, until
from tests.support.ledger_writers import running
from tests.support.tampering import past_the_guard

pytest_plugins = ["tests.support.ledger_fixtures"]

NOT_APPLICABLE = {8, 9, 10, 13, 15}


@pytest.fixture(autouse=True)
def _many_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SNAPSHOT_EVENTS", 20)


def do_business(ledger: str, *, seed: int = 1, rounds: int = 40) -> None:
    with running(ledger) as writer:
        run_day(writer, seed, rounds)
    ProjectionRunner(ledger, [Earnings(), JournalLines()]).catch_up()


def states(diagnosis: Diagnosis) -> dict[int, str]:
    return {finding.number: finding.state for finding in diagnosis.findings}


def violated(diagnosis: Diagnosis) -> dict[int, Finding]:
    return {finding.number: finding for finding in diagnosis.findings if finding.state == "violated"}


# --- sound books -----------------------------------------------------------------------------------------------------


def test_an_empty_ledger_is_sound(look: Connection) -> None:
    assert examine(look).healthy


def test_after_a_busy_day_every_invariant_holds_or_says_why_it_does_not_apply(ledger: str, look: Connection) -> None:
    do_business(ledger)
    diagnosis = examine(look)

    assert {number for number, state in states(diagnosis).items() if state == "does not apply"} == NOT_APPLICABLE
    assert all(finding.why for finding in diagnosis.findings if finding.number in NOT_APPLICABLE)
    assert {number for number, state in states(diagnosis).items() if state == "holds"} == set(
        range(1, 16)
    ) - NOT_APPLICABLE
    assert diagnosis.whole
    assert diagnosis.events == diagnosis.position > 150


def test_pages_end_anywhere_in_a_transaction(ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    do_business(ledger)
    whole = examine(look)
    monkeypatch.setattr(doctor_module, "PAGE_EVENTS", 7)
    assert examine(look) == whole


def test_read_models_that_lag_are_compared_as_far_as_they_have_read(ledger: str, look: Connection) -> None:
    do_business(ledger)
    with running(ledger) as writer:
        run_day(writer, seed=2)
    assert examine(look).healthy


def test_the_doctor_works_beside_a_running_writer(ledger: str, look: Connection) -> None:
    stopping = threading.Event()
    diagnoses: list[Diagnosis] = []

    def work() -> None:
        seed = 1
        while not stopping.is_set():
            run_day(writer, seed, 20)
            seed += 1

    def has_seen_the_log_grow() -> bool:
        diagnoses.append(examine(look))
        return len(diagnoses) >= 10 and diagnoses[-1].position > diagnoses[0].position

    with running(ledger) as writer:
        thread = threading.Thread(target=work)
        thread.start()
        try:
            until(has_seen_the_log_grow, "the log grew under the doctor's eyes")
        finally:
            stopping.set()
            thread.join()

    assert not any(violated(diagnosis) for diagnosis in diagnoses)


@pytest.mark.parametrize("newest", [1, 13, 50, 10_000])
def test_a_sample_of_sound_books_is_sound(ledger: str, look: Connection, newest: int) -> None:
    do_business(ledger)
    diagnosis = examine(look, newest=newest)

    assert diagnosis.healthy
    assert diagnosis.events == min(newest, diagnosis.position)
    assert diagnosis.whole == (newest >= diagnosis.position)
    if not diagnosis.whole:
        assert {states(diagnosis)[number] for number in (3, 12)} == {"does not apply"}


# --- broken builds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("breakage", "number"), IN_THE_LOG, ids=[breakage.__name__ for breakage, _ in IN_THE_LOG])
def test_the_doctor_catches_a_build_that_writes_a_wrong_log(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch, breakage: Breakage, number: int
) -> None:
    monkeypatch.setattr(BatchCheck, "check", lambda self, written: None)
    breakage(monkeypatch)
    do_business(ledger)
    found = violated(examine(look))

    assert number in found
    assert found[number].first is not None
    assert found[number].violations > 0


@pytest.mark.parametrize("breakage", IN_THE_READ_MODELS, ids=lambda breakage: breakage.__name__)
def test_the_doctor_catches_a_build_whose_read_models_are_wrong(
    ledger: str, look: Connection, monkeypatch: pytest.MonkeyPatch, breakage: Breakage
) -> None:
    breakage(monkeypatch)
    do_business(ledger)
    assert violated(examine(look)).keys() == {12}


def test_what_another_part_of_the_program_finds_counts_as_its_invariant(ledger: str, look: Connection) -> None:
    do_business(ledger)
    assert states(examine(look, more={13: lambda _: None}))[13] == "holds"

    found = violated(examine(look, more={13: lambda connection: "usage_entries differs at row 7"}))
    assert found.keys() == {13}
    assert "row 7" in str(found[13].first)


# --- tampering -------------------------------------------------------------------------------------------------------

TAMPERING: dict[str, tuple[str, int]] = {
    "an event is gone": ("DELETE FROM events WHERE position = 40", 14),
    "a position is skipped": ("UPDATE events SET position = position + 100000 WHERE position > 40", 14),
    "the last events are gone": ("DELETE FROM events WHERE position > 40", 14),
    "the head stands elsewhere": ("UPDATE ledger_head SET position = position + 1", 14),
    "a recorded time runs backwards": ("UPDATE events SET recorded_at = '2021-01-01' WHERE position = 40", 14),
    "a topic is unknown": ("UPDATE events SET topic = 'Wallet.Bonus' WHERE position = 40", 14),
    "an event is unreadable": ("UPDATE events SET state = '{' WHERE position = 40", 14),
    "an event is of another aggregate": ("UPDATE events SET originator_id = gen_random_uuid() WHERE position = 40", 14),
    "an amount is another": (
        "UPDATE events SET state = convert_to(regexp_replace(convert_from(state, 'UTF8'), '\"amount\":5000', "
        "'\"amount\":9999'), 'UTF8') WHERE topic = 'Wallet.PromotionalCreditGranted'",
        4,
    ),
    "a balance is another": ("UPDATE wallet_balances SET balance_micro_usd = balance_micro_usd + 1", 12),
    "a balance is made up": ("INSERT INTO wallet_balances VALUES ('mallory', 1, 5, 5, 0)", 12),
    "a usage row is gone": (
        "DELETE FROM usage_entries WHERE position = (SELECT min(position) FROM usage_entries)",
        12,
    ),
    "an open request is gone": ("DELETE FROM open_requests", 12),
    "an earning is another": ("UPDATE provider_earnings SET amount_micro_usd = 1", 12),
    "a journal line is gone": ("DELETE FROM journal_lines WHERE line = 0", 12),
    "a snapshot says something else": (
        "UPDATE snapshots SET state = convert_to(replace(convert_from(state, 'UTF8'), '\"promotional\":', "
        "'\"promotional\":1'), 'UTF8') WHERE state LIKE '%promotional%'::bytea",
        12,
    ),
    "a snapshot is of another version": ("UPDATE snapshots SET originator_version = originator_version - 1", 12),
    "a snapshot is ahead of the log": ("UPDATE snapshots SET originator_version = originator_version + 1000", 12),
    "a snapshot is of nobody": ("INSERT INTO snapshots VALUES (gen_random_uuid(), 1, 1, '{}')", 12),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_the_doctor_finds_that(ledger: str, look: Connection, what: str) -> None:
    statement, number = TAMPERING[what]
    do_business(ledger)
    with past_the_guard(look):
        assert look.execute(statement).rowcount > 0

    found = violated(examine(look))
    assert number in found


def test_a_snapshot_of_another_form_is_no_business_of_this_release(ledger: str, look: Connection) -> None:
    do_business(ledger)
    assert look.execute("UPDATE snapshots SET class_version = 0, state = '{}'").rowcount > 0
    assert examine(look).healthy


def test_every_aggregate_that_gets_snapshots_has_them_compared() -> None:
    kinds = [kind for kind in Aggregate.__subclasses__() if kind.__module__.startswith("domain.")]
    assert {kind.KIND for kind in kinds if kind.SNAPSHOT_VERSION} == SNAPSHOTTED.keys()


def test_the_first_of_many_violations_is_named_with_its_position(ledger: str, look: Connection) -> None:
    do_business(ledger)
    with past_the_guard(look):
        look.execute("DELETE FROM events WHERE position IN (20, 90)")
    finding = violated(examine(look))[14]
    assert finding.first is not None
    assert (finding.first.position, finding.first.what) == (21, "position 20 is missing")


def test_beyond_an_event_that_cannot_be_read_nothing_is_claimed(ledger: str, look: Connection) -> None:
    do_business(ledger)
    with past_the_guard(look):
        look.execute("UPDATE events SET state = '{' WHERE position = 40")
    diagnosis = examine(look)
    assert violated(diagnosis).keys() == {14}
    assert "holds" not in states(diagnosis).values()


# --- the command -----------------------------------------------------------------------------------------------------


def run(url: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["audit", "doctor", *options], env={"DARKBLOOM_DATABASE_URL": url})


def test_the_command_names_every_invariant_and_ends_with_0(ledger: str) -> None:
    do_business(ledger)
    result = run(ledger)

    assert result.exit_code == 0, result.output
    for invariant in INVARIANTS:
        assert invariant.says in result.output
        assert invariant.because in result.output
    assert "the books are sound" in result.output


def test_the_command_ends_with_1_and_names_the_place(ledger: str, look: Connection) -> None:
    do_business(ledger)
    with past_the_guard(look):
        look.execute("DELETE FROM events WHERE position = 20")
    result = run(ledger)

    assert result.exit_code == 1
    assert "position 21, log: position 20 is missing" in result.output
    assert "THE BOOKS ARE NOT SOUND" in result.output


def test_the_command_speaks_json(ledger: str, look: Connection) -> None:
    do_business(ledger)
    said: dict[str, Any] = json.loads(run(ledger, "--json").output)
    assert (said["healthy"], said["whole"], said["events"]) == (True, True, said["position"])
    assert [one["number"] for one in said["invariants"]] == list(range(1, 16))

    with past_the_guard(look):
        look.execute("DELETE FROM events WHERE position = 20")
    broken = run(ledger, "--json")
    (finding,) = [one for one in json.loads(broken.output)["invariants"] if one["number"] == 14]
    assert broken.exit_code == 1
    assert finding["first"] == {"position": 21, "subject": "log", "what": "position 20 is missing"}


def test_the_command_takes_a_sample(ledger: str) -> None:
    do_business(ledger)
    result = run(ledger, "--sample", "30")
    assert result.exit_code == 0, result.output
    assert "read 30 events" in result.output
    assert run(ledger, "--sample", "0").exit_code == 2


def test_the_command_examines_an_embedded_database_that_does_not_run(tmp_path: Path) -> None:
    data_dir = ["--data-dir", str(tmp_path / "data")]
    environment = {"DARKBLOOM_DATABASE_URL": ""}
    made = CliRunner().invoke(main, ["keys", "create", "--account", "ada", "--credit", "5", *data_dir], env=environment)
    assert made.exit_code == 0, made.output
    result = CliRunner().invoke(main, ["audit", "doctor", *data_dir], env=environment)
    assert result.exit_code == 0, result.output
    assert "read 3 events" in result.output


def test_a_database_that_is_not_there_is_one_line() -> None:
    result = run("postgresql://postgres@127.0.0.1:1/nowhere")
    assert result.exit_code == 1
    assert "does not answer" in result.output
