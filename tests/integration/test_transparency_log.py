"""The Merkle tree on a real log: kept by any number of processes, signed once for each size, damaged by nobody."""

from __future__ import annotations

import logging
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from adapters.crypto.notary import KeyFileNotary, verify_ed25519
from adapters.postgres.writer import LedgerWriter
from api.public import proving
from api.public.ports import TransparencyLog
from domain.errors import CheckpointPending, InternalError, InvalidRequest, NotFound
from domain.requests import job_id_of
from domain.transparency import checkpoint, leaf, merkle, note, proofs
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.leaf import LoggedEvent
from domain.transparency.merkle import CompactRange
from domain.transparency.tiles import TreeDamaged
from domain.wallet import Wallet
from projections import checkpoints, transparency
from projections.checkpoints import CheckpointRefused, StoredCheckpoints
from projections.earnings import Earnings
from projections.runner import ProjectionRunner
from projections.transparency import StoredTree
from projections.transparency_follower import TransparencyFollower
from tests.support.ledger_commands import account, grant, settled_request
from tests.support.ledger_tables import head_of
from tests.support.ledger_waiting import Connection, terminate_sessions, until

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.fixture
def notary(tmp_path: Path) -> KeyFileNotary:
    return KeyFileNotary(tmp_path / "checkpoint.key", "example.org/log")


def make_follower(url: str, notary: KeyFileNotary | None = None, *, seconds: float = 3_600.0) -> TransparencyFollower:
    return TransparencyFollower(url, notary, checkpoint_seconds=seconds)


@contextmanager
def following(
    url: str, notary: KeyFileNotary | None = None, *, seconds: float = 3_600.0
) -> Generator[None, None, None]:
    follower = make_follower(url, notary, seconds=seconds)
    follower.start()
    try:
        yield
    finally:
        follower.stop()


def events_of(look: Connection) -> list[LoggedEvent]:
    """The log as any client reads it, without the product's binary pages."""
    rows = look.execute(
        "SELECT position, originator_id, originator_version, topic, recorded_at, state FROM events ORDER BY position"
    ).fetchall()
    return [LoggedEvent(*row[:4], leaf.microseconds_of(row[4]), bytes(row[5])) for row in rows]


def root_by_hand(look: Connection, size: int | None = None) -> bytes:
    tree = CompactRange()
    for event in events_of(look)[:size]:
        tree.append(merkle.leaf_hash(leaf.encode(event)))
    return tree.root()


def stored_root(look: Connection, size: int | None = None) -> bytes:
    [root] = transparency.roots(look, [(0, transparency.tree_size(look) if size is None else size)])
    return root


def grow(writer: LedgerWriter, times: int = 1) -> None:
    for _ in range(times):
        writer.execute(grant(account(), 100))


def many_events(look: Connection, count: int) -> None:
    """More events, straight into the table, with payloads of many lengths."""
    head = head_of(look)
    with look.transaction():
        look.execute(
            "INSERT INTO events SELECT n, gen_random_uuid(), 1, 'Test.Happened', '2026-01-01'::timestamptz + n * "
            "interval '1 microsecond', convert_to(repeat('ä', n %% 700), 'UTF8') "
            "FROM generate_series(%s::int, %s::int) n",
            (head + 1, head + count),
        )
        look.execute("UPDATE ledger_head SET position = %s", (head + count,))


def newest(look: Connection) -> Checkpoint | None:
    signed = checkpoints.newest_note(look)
    return checkpoint.read(note.parse(signed)) if signed else None


@contextmanager
def by_force(look: Connection) -> Generator[None, None, None]:
    """As somebody who owns the database and switches its guards off."""
    look.execute("SET session_replication_role = replica")
    try:
        yield
    finally:
        look.execute("SET session_replication_role = origin")


def log_at(url: str) -> TransparencyLog:
    @asynccontextmanager
    async def connect() -> Any:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            yield connection

    return TransparencyLog(StoredTree(connect), StoredCheckpoints(connect))


# --- the tree --------------------------------------------------------------------------------------------------------


def test_the_stored_tree_is_the_tree_over_the_stored_events(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    grow(writer, 3)
    consumer = account()
    writer.execute(grant(consumer, 100))
    settled_request(writer, consumer, hold=50, cost=30)
    make_follower(ledger).catch_up()

    assert transparency.tree_size(look) == head_of(look) > 0
    assert stored_root(look) == root_by_hand(look)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 8_192, 8_193, 70_000])
def test_pages_of_any_size_give_the_same_tree(ledger: str, look: Connection, count: int) -> None:
    many_events(look, count)

    make_follower(ledger).catch_up()

    assert transparency.tree_size(look) == count
    assert stored_root(look) == root_by_hand(look)
    assert stored_root(look, (count + 1) // 2) == root_by_hand(look, (count + 1) // 2)


def test_a_running_follower_adds_what_is_written_while_it_runs(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    with following(ledger):
        for _ in range(3):
            grow(writer, 5)
            until(lambda: transparency.tree_size(look) == head_of(look), "the tree is at the head of the log")

    assert stored_root(look) == root_by_hand(look)


def test_followers_in_many_processes_take_turns_and_survive_lost_connections(
    ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    with following(ledger), following(ledger), following(ledger):
        grow(writer, 10)
        terminate_sessions(look)
        grow_again = LedgerWriter(ledger, [])
        grow_again.start()
        grow(grow_again, 10)
        grow_again.stop()
        until(lambda: transparency.tree_size(look) == head_of(look), "the tree is at the head of the log")

    assert stored_root(look) == root_by_hand(look)


def test_a_gap_in_the_log_stops_the_tree(ledger: str, look: Connection) -> None:
    many_events(look, 10)
    with by_force(look):
        look.execute("DELETE FROM events WHERE position = 4")

    with pytest.raises(TreeDamaged, match="9 events"):
        make_follower(ledger).catch_up()
    assert transparency.tree_size(look) == 0


def test_a_tracking_row_that_was_set_back_by_hand_does_not_rewrite_the_tree(ledger: str, look: Connection) -> None:
    many_events(look, 300)
    make_follower(ledger).catch_up()
    root = stored_root(look)
    look.execute("UPDATE projection_tracking SET position = 100 WHERE name = 'transparency'")

    with pytest.raises(TreeDamaged):
        make_follower(ledger).catch_up()
    assert stored_root(look, 300) == root


def test_what_stands_in_the_tree_is_never_changed_or_removed(
    ledger: str, look: Connection, notary: KeyFileNotary
) -> None:
    many_events(look, 300)
    make_follower(ledger).catch_up()
    checkpoints.publish(look, notary)

    for statement in (
        "UPDATE transparency_tiles SET hashes = set_byte(hashes, 20, 255 - get_byte(hashes, 20))",
        "UPDATE transparency_tiles SET hashes = substring(hashes FOR 32) WHERE level = 0",
        "UPDATE transparency_tiles SET number = number + 7",
        "DELETE FROM transparency_tiles",
        "TRUNCATE transparency_tiles",
        "UPDATE checkpoints SET root = decode(repeat('00', 32), 'hex')",
        "DELETE FROM checkpoints",
        "TRUNCATE checkpoints",
        "UPDATE checkpoint_keys SET verifier_key = 'other'",
        "DELETE FROM checkpoint_keys",
        "TRUNCATE checkpoint_keys",
    ):
        with pytest.raises(psycopg.errors.RaiseException, match="only grows"):
            look.execute(statement.encode())
    assert stored_root(look) == root_by_hand(look)


# --- signing ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_signed_size_and_root_of_the_tree(
    ledger: str, look: Connection, notary: KeyFileNotary
) -> None:
    many_events(look, 300)
    make_follower(ledger).catch_up()

    signed = checkpoints.publish(look, notary)

    assert signed is not None
    [published] = checkpoints.keys(look)
    assert note.verify(note.parse(signed), [published.key], verify_ed25519)
    made = checkpoint.read(note.parse(signed))
    assert (made.origin, made.size, made.root) == ("example.org/log", 300, root_by_hand(look))
    assert checkpoints.newest_note(look) == notary.last_signed() == signed


def test_a_log_that_did_not_grow_is_not_signed_again(ledger: str, look: Connection, notary: KeyFileNotary) -> None:
    make_follower(ledger).catch_up()
    assert checkpoints.publish(look, notary) is None
    many_events(look, 3)
    make_follower(ledger).catch_up()

    assert checkpoints.publish(look, notary) is not None
    assert checkpoints.publish(look, notary) is None


def test_of_many_who_sign_at_the_same_time_one_does(ledger: str, look: Connection, notary: KeyFileNotary) -> None:
    many_events(look, 500)
    make_follower(ledger).catch_up()

    def sign(_: int) -> str | None:
        with psycopg.connect(ledger, autocommit=True) as connection:
            return checkpoints.publish(connection, notary)

    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(sign, range(6)))

    assert len([signed for signed in made if signed is not None]) == 1


def test_a_running_follower_signs_in_good_time_and_when_somebody_wishes(
    ledger: str, writer: LedgerWriter, look: Connection, notary: KeyFileNotary
) -> None:
    grow(writer)
    with following(ledger, notary):
        until(lambda: newest(look) is not None, "the first checkpoint")
        grow(writer)

        def wished_and_signed() -> bool:
            look.execute(checkpoints.WISH)
            found = newest(look)
            return found is not None and found.size == head_of(look)

        until(wished_and_signed, "a checkpoint of what was added")
    with following(ledger, notary, seconds=0.05):
        grow(writer)
        until(lambda: (found := newest(look)) is not None and found.size == head_of(look), "a checkpoint in time")


def test_a_log_that_rested_is_signed_soon_after_it_moves_again(
    ledger: str, look: Connection, notary: KeyFileNotary
) -> None:
    with following(ledger, notary, seconds=3_600.0):
        until(lambda: look.execute(transparency.TRACKED_SIZE).fetchone() is not None, "the follower is there")
        many_events(look, 3)
        until(lambda: newest(look) is not None, "a checkpoint though the next hour has not come")


def test_a_log_that_never_rests_is_signed_as_well(ledger: str, look: Connection, notary: KeyFileNotary) -> None:
    class Busy(TransparencyFollower):
        def _advance(self, connection: Connection) -> int:
            return super()._advance(connection) or 1  # there is always something to add

    many_events(look, 3)
    follower = Busy(ledger, notary, checkpoint_seconds=0.05)
    follower.start()
    try:
        until(lambda: newest(look) is not None, "a checkpoint")
    finally:
        follower.stop()


def test_a_disk_that_cannot_remember_stops_the_signing_and_not_the_tree(
    ledger: str, look: Connection, notary: KeyFileNotary, caplog: pytest.LogCaptureFixture
) -> None:
    notary.create()
    notary._memory.mkdir()  # nothing can be written in its place
    many_events(look, 3)
    with following(ledger, notary, seconds=0.01):
        until(lambda: "no checkpoint was signed" in caplog.text, "a refusal")
        many_events(look, 3)
        until(lambda: transparency.tree_size(look) == 6, "the tree goes on")

    assert newest(look) is None


@pytest.mark.parametrize("what", ["rewritten", "cut"])
@pytest.mark.parametrize("remembered", ["in the database", "beside the key"])
def test_a_log_that_contradicts_what_was_signed_is_never_signed(
    ledger: str, look: Connection, notary: KeyFileNotary, caplog: pytest.LogCaptureFixture, what: str, remembered: str
) -> None:
    # Given a signed log whose owner forges everything in the database that can be forged
    many_events(look, 600)
    make_follower(ledger).catch_up()
    checkpoints.publish(look, notary)
    with by_force(look):
        look.execute("DELETE FROM transparency_tiles")
        look.execute("UPDATE projection_tracking SET position = 0")
        if what == "rewritten":
            look.execute("UPDATE events SET state = 'forged' WHERE position = 77")
            look.execute("INSERT INTO events SELECT 601, gen_random_uuid(), 1, 'Test.Happened', now(), 'x'")
            look.execute("UPDATE ledger_head SET position = 601")
        else:
            look.execute("DELETE FROM events WHERE position > 500")
            look.execute("UPDATE ledger_head SET position = 500")
        if remembered == "in the database":
            notary._memory.unlink()
        else:
            look.execute("DELETE FROM checkpoints")
    make_follower(ledger).catch_up()

    # When it is to be signed, then it is not
    reason = "was rewritten" if what == "rewritten" else "was cut"
    with pytest.raises(CheckpointRefused, match=reason):
        checkpoints.publish(look, notary)
    with caplog.at_level(logging.CRITICAL), following(ledger, notary, seconds=0.01):
        until(lambda: reason in caplog.text, "a loud refusal")
    found = newest(look)
    assert found is None or found.size == 600


def test_what_was_signed_but_not_published_is_published_as_it_was(
    ledger: str, look: Connection, notary: KeyFileNotary
) -> None:
    many_events(look, 300)
    make_follower(ledger).catch_up()
    signed = checkpoints.publish(look, notary)
    with by_force(look):
        look.execute("DELETE FROM checkpoints")  # as if the database had failed before its commit

    assert checkpoints.publish(look, notary) == signed


def test_a_memory_that_cannot_be_read_stops_the_signing(ledger: str, look: Connection, notary: KeyFileNotary) -> None:
    many_events(look, 3)
    make_follower(ledger).catch_up()
    notary.create()
    notary.remember("nonsense")

    with pytest.raises(CheckpointRefused, match="cannot be read"):
        checkpoints.publish(look, notary)


def test_a_tree_that_was_damaged_is_not_signed(ledger: str, look: Connection, notary: KeyFileNotary) -> None:
    many_events(look, 600)
    make_follower(ledger).catch_up()
    with by_force(look):
        look.execute("UPDATE transparency_tiles SET hashes = substring(hashes FOR 64) WHERE level = 0 AND number = 2")

    with pytest.raises(TreeDamaged):
        checkpoints.publish(look, notary)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_one_of_this_log_s_signs_nothing(
    ledger: str, look: Connection, notary: KeyFileNotary, tmp_path: Path
) -> None:
    many_events(look, 3)
    make_follower(ledger).catch_up()
    checkpoints.publish(look, notary)
    with by_force(look):
        look.execute("DELETE FROM checkpoints")
    stranger = KeyFileNotary(tmp_path / "other.key", "example.org/log")

    with pytest.raises(CheckpointRefused, match="bring the file back"):
        checkpoints.publish(look, stranger)
    stranger.create()
    with pytest.raises(CheckpointRefused, match="not among the published keys"):
        checkpoints.publish(look, stranger)


# --- proofs ----------------------------------------------------------------------------------------------------------


async def test_every_event_is_proven_against_the_signed_checkpoint(
    ledger: str, look: Connection, notary: KeyFileNotary
) -> None:
    many_events(look, 700)
    make_follower(ledger).catch_up()
    checkpoints.publish(look, notary)
    trusted = newest(look)
    assert trusted is not None
    log = log_at(ledger)
    events = events_of(look)

    for position in (1, 2, 255, 256, 257, 512, 513, 699, 700):
        made = await proving.prove_inclusion(log, position)
        assert proofs.check_inclusion(made, trusted) == events[position - 1]
    with pytest.raises(NotFound):
        await proving.prove_inclusion(log, 701)


async def test_an_event_that_no_checkpoint_covers_waits_for_one_and_asks_for_it(
    ledger: str, look: Connection, notary: KeyFileNotary
) -> None:
    many_events(look, 5)
    log = log_at(ledger)
    look.execute("LISTEN checkpoint")

    with pytest.raises(CheckpointPending):
        await proving.prove_inclusion(log, 5)

    assert [notice.channel for notice in look.notifies(timeout=10, stop_after=1)] == ["checkpoint"]
    with pytest.raises(NotFound, match="no signed checkpoint yet"):
        await proving.signed_checkpoint(log)


async def test_the_log_only_grows_from_one_signed_size_to_the_next(
    ledger: str, look: Connection, notary: KeyFileNotary
) -> None:
    signed: list[Checkpoint] = []
    log = log_at(ledger)
    for count in (3, 297, 600):
        many_events(look, count)
        make_follower(ledger).catch_up()
        checkpoints.publish(look, notary)
        found = newest(look)
        assert found is not None
        signed.append(found)

    assert [made.size for made in signed] == [3, 300, 900]
    for old in signed:
        proofs.check_consistency(await proving.prove_consistency(log, old.size, None), old, signed[-1])
        assert checkpoint.read(note.parse(await proving.signed_checkpoint(log, old.size))) == old
    with pytest.raises(NotFound):
        await proving.prove_consistency(log, 1, 901)
    with pytest.raises(InvalidRequest):
        await proving.prove_consistency(log, 4, 3)
    with pytest.raises(NotFound):
        await proving.signed_checkpoint(log, 4)
    proofs.check_inclusion(await proving.prove_inclusion(log, 2, size=3), signed[0])
    with pytest.raises(InvalidRequest, match="older than position 4"):
        await proving.prove_inclusion(log, 4, size=3)


async def test_an_event_that_was_changed_in_the_database_is_not_proven(
    ledger: str, look: Connection, notary: KeyFileNotary, caplog: pytest.LogCaptureFixture
) -> None:
    many_events(look, 300)
    make_follower(ledger).catch_up()
    checkpoints.publish(look, notary)
    with by_force(look):
        look.execute("UPDATE events SET state = 'forged' WHERE position = 77")

    with pytest.raises(InternalError, match="Position 77"):
        await proving.prove_inclusion(log_at(ledger), 77)
    assert "position 77 cannot be proven" in caplog.text
    await proving.prove_inclusion(log_at(ledger), 78)


async def test_a_charge_and_an_earning_are_found_by_those_whose_wallets_they_moved(
    ledger: str, writer: LedgerWriter, look: Connection, notary: KeyFileNotary
) -> None:
    # Given requests of two consumers, served by one provider, in one busy log
    consumer, other, provider = account("consumer"), account("other"), account("provider")
    for who in (consumer, other):
        writer.execute(grant(who, 10_000))
    jobs = {
        job_id_of(settled_request(writer, who, hold=1_000, cost=cost, provider=provider), 1): (who, cost)
        for who, cost in ((consumer, 700), (consumer, 300), (other, 500))
    }
    ProjectionRunner(ledger, [Earnings()]).catch_up()
    make_follower(ledger).catch_up()
    checkpoints.publish(look, notary)
    log = log_at(ledger)
    trusted = newest(look)
    assert trusted is not None

    # When each of them asks for each job, then everyone finds what moved the own wallet and nothing else
    for job_id, (payer, cost) in jobs.items():
        for who in (consumer, other, provider):
            position = await log.tree.position_of_job(job_id, Wallet.id_of(who))
            if who not in (payer, provider):
                assert position is None
                continue
            assert position is not None
            event = proofs.check_inclusion(
                await proving.prove_inclusion(log, position, wallet_id=Wallet.id_of(who)), trusted
            )
            topic = "Wallet.HoldCaptured" if who == payer else "Wallet.EarningCredited"
            assert event.topic == topic
            assert f":{cost},".encode() in event.payload
            stranger = provider if who == payer else payer
            assert stranger.encode() not in event.payload
            with pytest.raises(NotFound):
                await proving.prove_inclusion(log, position, wallet_id=Wallet.id_of(stranger))
