from __future__ import annotations

import pytest

from adapters.crypto.at_rest import CredentialBox


def test_only_the_same_credential_opens_what_was_sealed() -> None:
    sealed = CredentialBox("eigeninference-a", "replies").seal(b"an answer")
    assert b"answer" not in sealed
    assert CredentialBox("eigeninference-a", "replies").open(sealed) == b"an answer"
    for box in (CredentialBox("eigeninference-b", "replies"), CredentialBox("eigeninference-a", "other")):
        with pytest.raises(ValueError, match="credential"):
            box.open(sealed)


def test_a_changed_box_does_not_open() -> None:
    box = CredentialBox("eigeninference-a", "replies")
    sealed = bytearray(box.seal(b"an answer"))
    sealed[-1] ^= 1
    with pytest.raises(ValueError, match="credential"):
        box.open(bytes(sealed))


def test_a_name_depends_on_the_credential_and_on_where_its_parts_end() -> None:
    box = CredentialBox("eigeninference-a", "replies")
    assert box.name_of(b"ab", b"c") == box.name_of(b"ab", b"c")
    assert box.name_of(b"ab", b"c") != box.name_of(b"a", b"bc")
    assert box.name_of(b"ab") != CredentialBox("eigeninference-b", "replies").name_of(b"ab")
