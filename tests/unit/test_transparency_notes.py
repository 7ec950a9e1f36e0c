"""Signed notes and checkpoints: the form of C2SP, read strictly, signed with real Ed25519 keys."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.crypto.notary import Ed25519Signer, KeyFileNotary, KeyFileUnusable, verify_ed25519
from domain.transparency import checkpoint, merkle, note, proofs, succession
from domain.transparency.merkle import ProofRejected, leaf_hash
from domain.transparency.note import MalformedNote, NotSignedByKey, SignatureInvalid, VerifierKey
from tests.support.transparency import ORIGIN, OTHER_SIGNER, SIGNER, checkpoint_of, log_of, root_of, signed

LOG = log_of(5)

KNOWN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
KNOWN_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
"""A note and its key from the documentation of the format's first implementation."""


def verify(text: str, *keys: VerifierKey) -> list[VerifierKey]:
    return note.verify(note.parse(text), keys, verify_ed25519)


# --- notes -----------------------------------------------------------------------------------------------------------


def test_a_known_note_is_verified_by_its_known_key() -> None:
    key = note.parse_verifier_key(KNOWN_KEY)

    assert str(key) == KNOWN_KEY
    assert verify(KNOWN_NOTE, key) == [key]
    assert str(note.parse(KNOWN_NOTE)) == KNOWN_NOTE
    with pytest.raises(SignatureInvalid, match="c74f20a3"):
        verify(KNOWN_NOTE.replace("answer", "Answer"), key)


def test_during_a_rotation_either_key_is_enough() -> None:
    both = signed(LOG, SIGNER, OTHER_SIGNER)

    assert verify(both, SIGNER.key) == [SIGNER.key]
    assert verify(both, OTHER_SIGNER.key) == [OTHER_SIGNER.key]
    assert verify(both, SIGNER.key, OTHER_SIGNER.key) == [SIGNER.key, OTHER_SIGNER.key]
    with pytest.raises(NotSignedByKey):
        verify(signed(LOG), OTHER_SIGNER.key)


def test_one_known_signature_that_does_not_hold_spoils_the_note() -> None:
    one, two = signed(LOG, SIGNER), signed(log_of(6), OTHER_SIGNER)
    mixed = one + two.rpartition("\n\n")[2]

    assert verify(mixed, SIGNER.key) == [SIGNER.key]
    with pytest.raises(SignatureInvalid):
        verify(mixed, SIGNER.key, OTHER_SIGNER.key)


@given(st.data())
def test_every_changed_character_of_a_signed_checkpoint_is_noticed(data: st.DataObject) -> None:
    text = signed(LOG)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda character: character != text[at]))

    with pytest.raises((MalformedNote, SignatureInvalid, NotSignedByKey)):
        verify(text[:at] + other + text[at + 1 :], SIGNER.key)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "\n",
        "text\n",
        "text\n\n",
        "\n\n— name AAAAAAAA\n",
        "text\n\n— name AAAAAAAA",
        "text\n\n- name AAAAAAAA\n",
        "text\n\n— name AAAA\n",
        "text\n\n— name AAAAAAA\n",
        "text\n\n— name AAAAAAB=\n",
        "text\n\n— na+me AAAAAAAA\n",
        "text\n\n—  AAAAAAAA\n",
        "text\n\n— name AAAAAAAA\n\n",
        "text\n\nmore\n\n— name AAAAAAAA\n",
        "te\rxt\n\n— name AAAAAAAA\n",
        "te\x00xt\n\n— name AAAAAAAA\n",
        "text\n\n" + "— name AAAAAAAA\n" * 17,
        "t" * 65_536 + "\n\n— name AAAAAAAA\n",
    ],
)
def test_what_is_not_exactly_a_note_is_refused(bad: str) -> None:
    with pytest.raises(MalformedNote):
        note.parse(bad)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "name",
        "name+c74f20a3",
        KNOWN_KEY.replace("c74f20a3", "c74f20a4"),
        KNOWN_KEY.replace("Peter", "Paul"),
        KNOWN_KEY.replace("+ARpc", "+AhpC"),
        KNOWN_KEY[:-4],
        "two words" + KNOWN_KEY,
    ],
)
def test_what_is_not_exactly_a_verifier_key_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="key"):
        note.parse_verifier_key(bad)


# --- the next key ----------------------------------------------------------------------------------------------------

THIRD_SIGNER = Ed25519Signer(ORIGIN, bytes(range(2, 34)))


def test_trust_goes_from_key_to_key_and_never_to_a_stranger() -> None:
    second = str(succession.announce([SIGNER], OTHER_SIGNER))
    third = str(succession.announce([OTHER_SIGNER], THIRD_SIGNER))
    keys = [SIGNER.key, OTHER_SIGNER.key, THIRD_SIGNER.key]

    assert succession.follow(keys[:1], [second, third], verify_ed25519) == keys
    assert succession.follow(keys[1:2], [second, third], verify_ed25519) == keys[1:]
    assert succession.follow(keys[:1], [third], verify_ed25519) == keys[:1]
    assert succession.follow(keys[2:], [second], verify_ed25519) == keys[2:]


def test_an_announcement_that_was_changed_is_noticed() -> None:
    honest = succession.announce([SIGNER], OTHER_SIGNER)
    alone = str(honest._replace(signatures=honest.signatures[:1]))
    redirected = str(honest).replace(str(OTHER_SIGNER.key), str(THIRD_SIGNER.key))

    for bad in (alone, redirected):
        with pytest.raises(SignatureInvalid):
            succession.follow([SIGNER.key], [bad], verify_ed25519)
    for no_announcement in (signed(LOG), str(note.sign(f"other\nsuccessor {OTHER_SIGNER.key}\n", [SIGNER]))):
        with pytest.raises(MalformedNote):
            succession.follow([SIGNER.key], [no_announcement], verify_ed25519)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_four_lines_and_its_signatures() -> None:
    made = signed(LOG)

    head, _, signatures = made.partition("\n\n")
    assert head.split("\n") == [
        ORIGIN,
        "5",
        base64.b64encode(root_of(LOG)).decode(),
        "time 2026-11-24T08:00:00.123456Z",
    ]
    assert signatures.startswith(f"— {ORIGIN} ")
    assert checkpoint.read(note.parse(made)) == checkpoint_of(LOG)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("\n5\n", "\n05\n"),
        ("\n5\n", "\n+5\n"),
        ("\n5\n", "\n-5\n"),
        ("\n5\n", "\n9223372036854775808\n"),
        ("\n5\n", "\n٥\n"),
        ("=\ntime", "\ntime"),
        ("=\ntime", "==\ntime"),
        ("time 2026", "TIME 2026"),
        ("2026-11-24", "2026-13-24"),
        ("Z\n", "Z\nmore\n"),
        (f"{ORIGIN}\n", "\n"),
    ],
)
def test_what_is_not_exactly_a_checkpoint_is_refused(good: str, bad: str) -> None:
    text = checkpoint_of(LOG).text()
    assert good in text

    with pytest.raises(MalformedNote):
        checkpoint.read(note.SignedNote(text.replace(good, bad), []))


def test_a_file_may_hold_several_checkpoints() -> None:
    notes = [signed(log_of(size), *signers) for size, signers in ((1, [SIGNER]), (2, [SIGNER, OTHER_SIGNER]), (3, []))]

    for between in ("", "\n", "\n\n"):
        assert list(checkpoint.split(between.join(notes))) == notes
    assert list(checkpoint.split("")) == []


# --- proofs in JSON --------------------------------------------------------------------------------------------------


def test_a_proof_says_which_event_it_is_for_and_fails_for_any_other() -> None:
    from domain.transparency import export, tiles

    hashes = [export.hash_of(each) for each in LOG]
    tree = tiles.append(0, hashes, {})
    steps = tiles.roots_of(merkle.inclusion_ranges(2, 5), tree)
    made = proofs.prove_inclusion(LOG[2], hashes[2], steps, signed(LOG))
    trusted = checkpoint_of(LOG)

    assert proofs.check_inclusion(made, trusted) == LOG[2]
    with pytest.raises(ProofRejected):
        proofs.prove_inclusion(LOG[3], hashes[3], steps, signed(LOG))
    with pytest.raises(ProofRejected, match="does not have the hash"):
        proofs.prove_inclusion(LOG[2]._replace(payload=b"{}"), hashes[2], steps, signed(LOG))
    with pytest.raises(ProofRejected, match="a log of 5 events"):
        proofs.check_inclusion(made, checkpoint_of(log_of(4)))
    with pytest.raises(ProofRejected):
        proofs.check_inclusion(made, trusted._replace(root=leaf_hash(b"another")))


# --- the key file ----------------------------------------------------------------------------------------------------


def test_a_key_file_is_made_once_closed_to_others_and_found_again(tmp_path: Path) -> None:
    notary = KeyFileNotary(tmp_path / "deep" / "checkpoint.key", ORIGIN)

    [made] = notary.signers(may_create=True)

    assert notary.path.stat().st_mode & 0o777 == 0o600
    assert notary.path.parent.stat().st_mode & 0o777 == 0o700
    assert made.key.name == ORIGIN
    assert [signer.key for signer in notary.signers(may_create=True)] == [made.key]
    assert verify_ed25519(made.key.public_key, made.sign(b"message"), b"message")
    assert not verify_ed25519(made.key.public_key, made.sign(b"message"), b"massage")


def test_two_logs_that_nobody_named_have_two_names(tmp_path: Path) -> None:
    names = {KeyFileNotary(tmp_path / name).signers(may_create=True)[0].key.name for name in ("one", "two")}

    assert len(names) == 2


def test_a_key_file_that_is_missing_open_to_others_or_damaged_is_refused_with_advice(tmp_path: Path) -> None:
    notary = KeyFileNotary(tmp_path / "checkpoint.key")
    with pytest.raises(KeyFileUnusable, match="bring the file back"):
        notary.signers()
    notary.create()
    notary.path.chmod(0o640)
    with pytest.raises(KeyFileUnusable, match="chmod 600"):
        notary.signers()
    line = SIGNER.private_line()
    for text in ("", "nonsense\n", line.replace("+", "-"), line.replace(ORIGIN, "other"), line + "more\n"):
        notary.path.chmod(0o600)
        notary.path.write_text(text)
        with pytest.raises(KeyFileUnusable, match="damaged"):
            notary.signers()
    notary.path.write_text(line + Ed25519Signer("other.example", bytes(32)).private_line())
    with pytest.raises(KeyFileUnusable, match="of one log"):
        notary.signers()


def test_what_was_signed_last_is_remembered_beside_the_key(tmp_path: Path) -> None:
    notary = KeyFileNotary(tmp_path / "checkpoint.key")
    assert notary.last_signed() is None

    for size in (3, 4):
        notary.remember(signed(log_of(size)))

    assert KeyFileNotary(notary.path).last_signed() == signed(log_of(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.key.signed"]
