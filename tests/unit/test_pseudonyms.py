"""Names for accounts that only who has the secret can tie to them."""

from __future__ import annotations

import re

from domain.pseudonyms import ADJECTIVES, ANIMALS, pseudonyms_of

SECRET = b"a secret of the server"


def test_there_are_256_different_words_of_each_kind_and_no_word_is_odd() -> None:
    for words in (ADJECTIVES, ANIMALS):
        assert len(words) == len(set(words)) == 256
        assert all(re.fullmatch(r"[a-z]{2,12}", word) for word in words)


def test_an_account_keeps_its_name_whoever_stands_beside_it() -> None:
    alone = pseudonyms_of(["acct_9"], SECRET)
    among_others = pseudonyms_of(["acct_1", "acct_9", "acct_2"], SECRET)

    assert alone["acct_9"] == among_others["acct_9"]
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d{4}", alone["acct_9"])


def test_another_secret_gives_another_name() -> None:
    assert pseudonyms_of(["acct_9"], SECRET) != pseudonyms_of(["acct_9"], b"another secret")


def test_no_account_is_anonymous() -> None:
    assert pseudonyms_of([""], SECRET) == {"": "anon"}


def test_of_two_accounts_with_one_name_the_later_gets_a_longer_number() -> None:
    # Given two accounts whose short names collide: the birthday of 656 million names comes early.
    seen: dict[str, str] = {}
    pair: tuple[str, str] | None = None
    for number in range(200_000):
        account_id = f"acct_{number}"
        (name,) = pseudonyms_of([account_id], SECRET).values()
        if name in seen:
            pair = seen[name], account_id
            break
        seen[name] = account_id
    assert pair is not None
    # When both are in one answer
    names = pseudonyms_of(pair, SECRET)
    # Then they can be told apart.
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d{4}", names[pair[0]])
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d{6}", names[pair[1]])
    assert names[pair[0]].rpartition("-")[0] == names[pair[1]].rpartition("-")[0]
