"""``darkbloomd audit``: an export of a real log is checked offline, and whoever changed the database is found out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from adapters.crypto.notary import KeyFileNotary
from adapters.postgres.writer import LedgerWriter
from api.cli import main
from domain.transparency import checkpoint, note
from projections import checkpoints
from projections.transparency_follower import TransparencyFollower
from tests.support.ledger_commands import account, grant, settled_request
from tests.support.ledger_tables import head_of
from tests.support.ledger_waiting import Connection
from tests.support.transparency import SIGNER, log_of, signed

pytest_plugins = ["tests.support.ledger_fixtures"]


class Auditor:
    """Runs commands in a folder; the database is only there while ``url`` is set."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environment = {
            "DARKBLOOM_DATABASE_URL": url,
            "DARKBLOOM_CHECKPOINT_KEY_FILE": str(folder / "checkpoint.key"),
        }
        self.notary = KeyFileNotary(folder / "checkpoint.key", "example.org/log")

    def run(self, *words: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["audit", *map(str, words)], env=self.environment)
        assert result.exit_code == code, result.output
        return result

    def offline(self, *words: str | Path, code: int = 0) -> Result:
        """The same where no database can be reached."""
        nowhere = self.environment | {"DARKBLOOM_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere"}
        result = CliRunner().invoke(main, ["audit", *map(str, words)], env=nowhere)
        assert result.exit_code == code, result.output
        return result

    def sign(self) -> Path:
        """Follow the log to its head, sign it, and fetch the checkpoint; the file is named by the size."""
        url = self.environment["DARKBLOOM_DATABASE_URL"]
        TransparencyFollower(url, None, checkpoint_seconds=1.0).catch_up()
        with psycopg.connect(url, autocommit=True) as connection:
            checkpoints.publish(connection, self.notary)
            self.file("keys").write_text(self.run("keys").output)
        self.run("checkpoint", "--out", self.file("new"))
        size = checkpoint.read(note.parse(self.file("new").read_text())).size
        return self.file("new").rename(self.file(f"checkpoint-{size}"))

    def export(self, name: str) -> Path:
        self.run("export-events", self.file(name))
        return self.file(name)

    def file(self, name: str) -> Path:
        return self.folder / name

    def verdict(self, export: Path, *checkpoints: Path, more: Sequence[str | Path] = ()) -> dict[str, Any]:
        given = [word for file in checkpoints for word in ("--checkpoint", file)]
        words = ("verify", export, *given, "--key", self.file("keys"), "--json", *more)
        environment = self.environment | {"DARKBLOOM_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere"}
        result = CliRunner().invoke(main, ["audit", *map(str, words)], env=environment)
        found: dict[str, Any] = json.loads(result.stdout)
        assert result.exit_code == (0 if found["ok"] else 1)
        return found


@pytest.fixture
def auditor(ledger: str, tmp_path: Path) -> Auditor:
    return Auditor(tmp_path, ledger)


def business(writer: LedgerWriter) -> None:
    consumer, provider = account("consumer"), account("provider")
    writer.execute(grant(consumer, 10_000))
    for cost in (700, 300, 200):
        settled_request(writer, consumer, hold=1_000, cost=cost, provider=provider)


def by_force(look: Connection, *statements: str) -> None:
    """As somebody who owns the database and switches its guards off."""
    with look.transaction():
        look.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            look.execute(statement.encode())


# --- an honest log ---------------------------------------------------------------------------------------------------


def test_an_honest_export_is_good_without_a_database(auditor: Auditor, writer: LedgerWriter, look: Connection) -> None:
    business(writer)
    signed_at = auditor.sign()

    export = auditor.export("log.jsonl")

    head = head_of(look)
    lines = export.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["position"] for line in lines[:-1]] == list(range(1, head + 1))
    assert auditor.verdict(export, signed_at) == {
        "ok": True,
        "events": head,
        "covered": head,
        "reason": "every event is covered",
        "first_bad_position": None,
        "range": None,
    }
    assert "ok: " in auditor.offline("verify", export, "--checkpoint", signed_at).stdout
    assert "signatures are not checked" in auditor.offline("verify", export, "--checkpoint", signed_at).stderr


def test_an_export_needs_no_right_but_to_read(
    auditor: Auditor, ledger: str, writer: LedgerWriter, look: Connection
) -> None:
    business(writer)
    auditor.sign()
    look.execute("DROP ROLE IF EXISTS proof_reader")
    look.execute("CREATE ROLE proof_reader LOGIN")
    look.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO proof_reader")
    try:
        auditor.environment["DARKBLOOM_DATABASE_URL"] = ledger.replace("postgres@", "proof_reader@")
        auditor.export("log.jsonl")
        auditor.run("checkpoint")
        auditor.run("prove", "--position", "1")
        auditor.run("keys")
    finally:
        look.execute("DROP OWNED BY proof_reader")
        look.execute("DROP ROLE proof_reader")


def test_one_event_is_proven_and_checked_alone(auditor: Auditor, writer: LedgerWriter, look: Connection) -> None:
    business(writer)
    old = auditor.sign()
    auditor.file("proof.json").write_text(auditor.run("prove", "--position", "5").stdout)
    business(writer)
    new = auditor.sign()
    given = ("--key", auditor.file("keys"), "--checkpoint")

    said = auditor.offline("verify-inclusion", auditor.file("proof.json"), *given, old).stdout

    assert "stands at position 5" in said
    wrong_size = auditor.offline("verify-inclusion", auditor.file("proof.json"), *given, new, code=2)
    assert "checkpoint?size=" in wrong_size.stderr
    forged = json.loads(auditor.file("proof.json").read_text())
    forged["event"]["payload"] = forged["event"]["payload"].replace("1000", "1001")
    auditor.file("proof.json").write_text(json.dumps(forged))
    auditor.offline("verify-inclusion", auditor.file("proof.json"), *given, old, code=1)
    assert "no position 999999" in auditor.run("prove", "--position", "999999", code=1).stderr


# --- a log that somebody changed in the database ---------------------------------------------------------------------


def flip(position: int) -> list[str]:
    return [f"UPDATE events SET state = set_bit(state, 200, 1 - get_bit(state, 200)) WHERE position = {position}"]


def remove(position: int) -> list[str]:
    return [f"DELETE FROM events WHERE position = {position}"]


def close_the_gap(position: int) -> list[str]:
    return [
        f"DELETE FROM events WHERE position = {position}",
        f"UPDATE events SET position = -position WHERE position > {position}",
        "UPDATE events SET position = -position - 1 WHERE position < 0",
    ]


def insert(position: int) -> list[str]:
    return [
        f"UPDATE events SET position = -position WHERE position >= {position}",
        "UPDATE events SET position = -position + 1 WHERE position < 0",
        f"INSERT INTO events SELECT {position}, gen_random_uuid(), 1, topic, recorded_at, state FROM events"
        f" WHERE position = {position + 1}",
    ]


def swap(position: int) -> list[str]:
    return [
        f"UPDATE events SET position = -1 WHERE position = {position}",
        f"UPDATE events SET position = {position} WHERE position = {position + 1}",
        f"UPDATE events SET position = {position + 1} WHERE position = -1",
    ]


def backdate(position: int) -> list[str]:
    return [f"UPDATE events SET recorded_at = recorded_at - interval '1 microsecond' WHERE position = {position}"]


@pytest.mark.parametrize("tamper", [flip, remove, close_the_gap, insert, swap, backdate])
@pytest.mark.parametrize("position", [1, 9, 17])
def test_what_was_changed_in_the_events_is_named_by_its_position(
    auditor: Auditor, writer: LedgerWriter, look: Connection, tamper: Callable[[int], list[str]], position: int
) -> None:
    business(writer)
    signed_at = auditor.sign()
    by_force(look, *tamper(position))

    export = auditor.export("log.jsonl")

    found = auditor.verdict(export, signed_at)
    assert (found["ok"], found["first_bad_position"]) == (False, position)
    assert "first bad position" in auditor.offline("verify", export, "--checkpoint", signed_at, code=1).stdout


@pytest.mark.parametrize("tamper", [flip, close_the_gap, insert, swap, backdate])
def test_a_history_that_was_rewritten_with_its_tree_lies_between_two_checkpoints_or_beside_an_earlier_copy_is_exact(
    auditor: Auditor, writer: LedgerWriter, look: Connection, tamper: Callable[[int], list[str]]
) -> None:
    # Given three signed sizes and what an auditor kept of the second one
    sizes: list[int] = []
    files: list[Path] = []
    for _ in range(3):
        business(writer)
        files.append(auditor.sign())
        sizes.append(head_of(look))
        if len(sizes) == 2:
            earlier = auditor.export("earlier.jsonl")
    hashes = auditor.file("hashes")
    assert auditor.verdict(earlier, *files[:2], more=["--save-hashes", hashes])["ok"]
    position = sizes[0] + 7

    # When somebody rewrites an event between the first two, and the whole tree over it
    by_force(look, *tamper(position), "DELETE FROM transparency_tiles", "UPDATE projection_tracking SET position = 0")
    head = look.execute("SELECT count(*) FROM events").fetchone()
    assert head is not None
    look.execute("UPDATE ledger_head SET position = %s", (head[0],))
    TransparencyFollower(auditor.environment["DARKBLOOM_DATABASE_URL"], None, checkpoint_seconds=1.0).catch_up()
    export = auditor.export("log.jsonl")

    # Then checkpoints alone tell the range, and an earlier copy tells the position
    found = auditor.verdict(export, *files)
    assert (found["ok"], found["covered"], found["range"]) == (False, sizes[0], [sizes[0] + 1, sizes[1]])
    assert auditor.verdict(export, files[2])["range"] == [1, sizes[2]]
    for copy in (earlier, hashes):
        exact = auditor.verdict(export, *files, more=["--earlier", copy])
        assert (exact["ok"], exact["first_bad_position"]) == (False, position)


def test_an_earlier_copy_that_was_changed_itself_is_not_believed(
    auditor: Auditor, writer: LedgerWriter, look: Connection
) -> None:
    business(writer)
    signed_at = auditor.sign()
    export = auditor.export("log.jsonl")
    hashes = auditor.file("hashes")
    assert auditor.verdict(export, signed_at, more=["--save-hashes", hashes])["ok"]
    lines = hashes.read_text().splitlines(keepends=True)
    hashes.write_text("".join([*lines[:4], lines[5], *lines[5:]]))

    said = auditor.offline("verify", export, "--checkpoint", signed_at, "--earlier", hashes, code=2).stderr

    assert "the earlier copy does not have the root" in said


# --- files that are no evidence --------------------------------------------------------------------------------------


def test_what_cannot_be_read_ends_with_code_2_and_says_why(auditor: Auditor, tmp_path: Path) -> None:
    export, good, other = tmp_path / "log.jsonl", tmp_path / "good", tmp_path / "other"
    export.write_bytes(b"")
    good.write_text(signed(log_of(3)))
    other.write_text("nonsense\n")
    for words, why in (
        (("verify", export), "Missing option '--checkpoint'"),
        (("verify", tmp_path / "missing", "--checkpoint", good), "does not exist"),
        (("verify", export, "--checkpoint", other), "no checkpoint"),
        (("verify", export, "--checkpoint", export), "holds no checkpoint"),
        (("verify", export, "--checkpoint", good, "--key", "nonsense"), "verifier key"),
        (("verify", export, "--checkpoint", good, "--earlier", other), "earlier copy"),
        (("verify-inclusion", other, "--checkpoint", good), "is no such proof"),
        (("verify-consistency", other, "--checkpoint", good), "is no such proof"),
    ):
        assert why in auditor.offline(*words, code=2).stderr


def test_a_checkpoint_with_a_wrong_signature_is_tampering_and_one_by_a_stranger_is_no_evidence(
    auditor: Auditor, tmp_path: Path
) -> None:
    export, file = tmp_path / "log.jsonl", tmp_path / "checkpoint"
    export.write_bytes(b"")
    honest = signed(log_of(3))
    given = ("verify", export, "--checkpoint", file, "--key")

    file.write_text(honest.replace("\n3\n", "\n4\n"))
    assert "does not hold" in auditor.offline(*given, str(SIGNER.key), code=1).stderr
    file.write_text(honest)
    stranger = KeyFileNotary(tmp_path / "stranger.key").create()
    assert "none of the keys" in auditor.offline(*given, str(stranger.key), code=2).stderr
    file.write_text(honest + signed([*log_of(2), log_of(4)[3]]))
    assert "different roots" in auditor.offline(*given, str(SIGNER.key), code=1).stderr


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_followed_by_its_successor_without_a_checkpoint_that_nobody_can_check(
    auditor: Auditor, writer: LedgerWriter, look: Connection
) -> None:
    def signed_by(file: Path) -> list[str]:
        return [signature.key_id.hex() for signature in note.parse(file.read_text()).signatures]

    business(writer)
    first = auditor.sign()
    [old] = signed_by(first)

    successor = note.parse_verifier_key(auditor.run("announce-key").stdout)
    business(writer)
    both = auditor.sign()
    assert signed_by(both) == [old, successor.key_id.hex()]
    assert [line.split()[1] for line in auditor.run("keys").stdout.splitlines()] == ["signs,", "signs,"]

    auditor.run("retire-key", old)
    business(writer)
    last = auditor.sign()
    assert signed_by(last) == [successor.key_id.hex()]
    listed = auditor.run("keys").stdout.splitlines()
    assert "retired" in listed[0]
    assert "signs" in listed[1]

    # The old key has signed who follows it, and every checkpoint is checked by one key or the other.
    rows = look.execute("SELECT verifier_key, announcement FROM checkpoint_keys ORDER BY announced_at").fetchall()
    auditor.file("keys.json").write_text(json.dumps({"keys": [{"announcement": row[1] or None} for row in rows]}))
    followed = auditor.offline("follow-keys", auditor.file("keys.json"), "--key", rows[0][0]).stdout
    assert followed.splitlines() == [rows[0][0], str(successor)]
    assert auditor.verdict(auditor.export("log.jsonl"), first, both, last)["ok"]


def test_a_log_is_signed_by_hand_where_nothing_runs(auditor: Auditor, writer: LedgerWriter, look: Connection) -> None:
    business(writer)

    made = auditor.run("checkpoint", "--sign").stdout

    assert checkpoint.read(note.parse(made)).size == head_of(look)
    assert auditor.run("checkpoint", "--sign").stdout == made
    by_force(look, "UPDATE transparency_tiles SET hashes = set_byte(hashes, 0, 255 - get_byte(hashes, 0))")
    business(writer)
    assert "nothing was signed" in auditor.run("checkpoint", "--sign", code=1).stderr


def test_the_only_key_and_unknown_keys_are_not_retired(auditor: Auditor, writer: LedgerWriter) -> None:
    business(writer)
    auditor.sign()
    [only] = auditor.notary.signers()

    assert "the only key" in auditor.run("retire-key", only.key.key_id.hex(), code=1).stderr
    assert "no key 00000000" in auditor.run("retire-key", "00000000", code=1).stderr


def test_without_a_key_file_no_key_is_announced(auditor: Auditor) -> None:
    del auditor.environment["DARKBLOOM_CHECKPOINT_KEY_FILE"]

    for words in (("announce-key",), ("retire-key", "00000000"), ("checkpoint", "--sign")):
        assert "DARKBLOOM_CHECKPOINT_KEY_FILE" in auditor.run(*words, code=1).stderr
