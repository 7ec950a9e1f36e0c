from __future__ import annotations

import base64
from collections.abc import Callable

import nacl.public
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey, PublicKey

from adapters.crypto.box import (
    SEALED_OVERHEAD_BYTES,
    SealedChannel,
    SealingError,
    parse_public_key,
    public_key_text,
)
from adapters.crypto.sealing import AttemptChannel, NaclSealing

PROVIDER = PrivateKey(bytes(range(1, 33)))
SESSION = PrivateKey(bytes(range(33, 65)))
STRANGER = PrivateKey(bytes(range(65, 97)))
PROVIDER_KEY = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="
SESSION_KEY = "WGmv9FBUlzLLqu1eXfmzCm2jHLDldCutWtShp2jxpns="

REQUEST = b'{"model":"demo/model-4bit","messages":[{"role":"user","content":"ping"}],"stream":true,"max_tokens":16}'
REQUEST_NONCE = bytes(range(24))
REQUEST_SEALED = (
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXOMpK3C/3PxoncqfdNLWJ/2nXtjY+WBHww9AlZpItPtAabnFqTofNXJq4Z7rPMX4wSCtSQAZVHyrc5xGw"
    "InILmTwMDCkclG7z9wYwFskWxXTr69YTJOq9wmefQsiINuKTMQEX4uafoEmbHulxjBkVxcAwxne/W/0="
)
CHUNK = b'data: {"choices":[{"delta":{"content":"po"}}]}'
CHUNK_NONCE = bytes(range(100, 124))
CHUNK_SEALED = (
    "ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7E0LXlTgtyVWr9Kx73lsefJpU25NX+dri4CypoQFXrDIYbMPkecEgJiqKBVjl2zJfiFT2AQ0sSFaihxjF"
    "En0="
)
P = 2**255 - 19
SMALL_ORDER_POINTS = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]

to_provider = SealedChannel(SESSION, PROVIDER.public_key)
at_provider = SealedChannel(PROVIDER, SESSION.public_key)


def altered(sealed: str, change: Callable[[bytearray], object]) -> str:
    raw = bytearray(base64.b64decode(sealed))
    change(raw)
    return base64.b64encode(raw).decode()


class TestTheVectors:
    def test_the_public_keys_follow_from_the_secrets(self) -> None:
        assert (public_key_text(PROVIDER), public_key_text(SESSION)) == (PROVIDER_KEY, SESSION_KEY)
        assert public_key_text(PROVIDER.public_key) == PROVIDER_KEY
        assert bytes(parse_public_key(PROVIDER_KEY)) == bytes(PROVIDER.public_key)

    def test_one_key_serves_both_directions(self) -> None:
        shared = "ec88f6e13b22bf9f04d480e0d8525c08ac7e2f48e212742bcbcafa104a74b08d"
        assert Box(PROVIDER, SESSION.public_key).shared_key().hex() == shared
        assert Box(SESSION, PROVIDER.public_key).shared_key().hex() == shared

    @pytest.mark.parametrize(
        ("sender", "nonce", "text", "sealed"),
        [(to_provider, REQUEST_NONCE, REQUEST, REQUEST_SEALED), (at_provider, CHUNK_NONCE, CHUNK, CHUNK_SEALED)],
        ids=["request", "chunk"],
    )
    def test_sealing_with_the_published_nonce_gives_the_published_bytes(
        self, sender: SealedChannel, nonce: bytes, text: bytes, sealed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nacl.public, "random", lambda size: nonce[:size])
        assert sender.seal(text) == sealed

    def test_each_side_opens_what_the_other_sealed(self) -> None:
        assert at_provider.open(REQUEST_SEALED) == REQUEST
        assert to_provider.open(CHUNK_SEALED) == CHUNK

    def test_a_request_that_is_sent_again_opens_again(self) -> None:
        assert at_provider.open(REQUEST_SEALED) == at_provider.open(REQUEST_SEALED)


class TestWhatDoesNotOpen:
    @pytest.mark.parametrize("position", [0, 12, 23], ids="nonce byte {}".format)
    def test_a_flipped_bit_of_the_nonce(self, position: int) -> None:
        with pytest.raises(SealingError, match="authenticate"):
            at_provider.open(altered(REQUEST_SEALED, lambda raw: raw.__setitem__(position, raw[position] ^ 1)))

    @pytest.mark.parametrize("position", [24, 39, 40, 100, 142], ids="byte {}".format)
    def test_a_flipped_bit_of_the_tag_or_the_text(self, position: int) -> None:
        with pytest.raises(SealingError, match="authenticate"):
            at_provider.open(altered(REQUEST_SEALED, lambda raw: raw.__setitem__(position, raw[position] ^ 128)))

    @pytest.mark.parametrize("missing", [1, 2, 60, 102])
    def test_a_truncated_value(self, missing: int) -> None:
        with pytest.raises(SealingError):
            at_provider.open(altered(REQUEST_SEALED, lambda raw: raw.__delitem__(slice(-missing, None))))

    def test_a_lengthened_value(self) -> None:
        with pytest.raises(SealingError):
            at_provider.open(altered(REQUEST_SEALED, lambda raw: raw.append(0)))

    @pytest.mark.parametrize("length", range(42))
    def test_a_value_of_few_bytes(self, length: int) -> None:
        with pytest.raises(SealingError):
            at_provider.open(base64.b64encode(bytes(length)).decode())

    @pytest.mark.parametrize("length", range(SEALED_OVERHEAD_BYTES))
    def test_a_value_shorter_than_nonce_and_tag_is_not_even_tried(self, length: int) -> None:
        with pytest.raises(SealingError, match="too short"):
            at_provider.open(base64.b64encode(bytes(length)).decode())

    def test_a_value_for_another_recipient(self) -> None:
        with pytest.raises(SealingError):
            SealedChannel(STRANGER, SESSION.public_key).open(REQUEST_SEALED)

    def test_a_value_from_another_sender(self) -> None:
        with pytest.raises(SealingError):
            SealedChannel(PROVIDER, STRANGER.public_key).open(REQUEST_SEALED)

    @pytest.mark.parametrize(
        "sealed",
        [
            REQUEST_SEALED[:-1],
            REQUEST_SEALED + "\n",
            " " + REQUEST_SEALED,
            REQUEST_SEALED[:76] + "\n" + REQUEST_SEALED[76:],
            REQUEST_SEALED.replace("+", "-").replace("/", "_"),
            REQUEST_SEALED + "AAAA",
            "Ä" * 80,
            "",
        ],
        ids=["no padding", "newline", "space", "line break", "url-safe", "after the end", "no ascii", "nothing"],
    )
    def test_base64_in_another_form(self, sealed: str) -> None:
        with pytest.raises(SealingError):
            at_provider.open(sealed)

    @given(st.text(max_size=120))
    def test_any_other_text(self, sealed: str) -> None:
        with pytest.raises(SealingError):
            at_provider.open(sealed)

    def test_a_refusal_does_not_repeat_what_was_sealed(self) -> None:
        with pytest.raises(SealingError) as refusal:
            at_provider.open(CHUNK_SEALED[:-4] + "AAAA")
        assert CHUNK_SEALED[:10] not in str(refusal.value)
        assert refusal.value.__cause__ is None


class TestSealing:
    @given(st.binary(max_size=2_000))
    def test_what_was_sealed_opens_at_the_other_side_only(self, text: bytes) -> None:
        sealed = to_provider.seal(text)
        assert at_provider.open(sealed) == text
        assert len(base64.b64decode(sealed)) == len(text) + SEALED_OVERHEAD_BYTES

    def test_each_value_has_a_nonce_of_its_own(self) -> None:
        nonces = {base64.b64decode(to_provider.seal(b"same"))[:24] for _ in range(200)}
        assert len(nonces) == 200


class TestKeys:
    @pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
    def test_a_key_has_exactly_32_bytes(self, length: int) -> None:
        with pytest.raises(SealingError, match="32"):
            parse_public_key(base64.b64encode(b"\x07" * length).decode())

    def test_the_all_zero_key_is_refused(self) -> None:
        with pytest.raises(SealingError, match="zero"):
            parse_public_key(base64.b64encode(bytes(32)).decode())

    @pytest.mark.parametrize(
        "text",
        ["", "x", PROVIDER_KEY[:-1], PROVIDER_KEY + "\n", PROVIDER_KEY.replace("/", "_"), "é" * 44, PROVIDER_KEY * 2],
    )
    def test_base64_in_another_form_is_refused(self, text: str) -> None:
        with pytest.raises(SealingError):
            parse_public_key(text)

    @pytest.mark.parametrize("point", SMALL_ORDER_POINTS)
    def test_no_channel_is_built_with_a_point_that_leads_to_no_secret(self, point: int) -> None:
        with pytest.raises(SealingError):
            SealedChannel(SESSION, PublicKey(point.to_bytes(32, "little")))


class TestTheGatewaysSealing:
    def test_each_attempt_has_a_key_of_its_own(self) -> None:
        sealing = NaclSealing()
        channels = [sealing.channel(PROVIDER_KEY) for _ in range(20)]
        assert len({channel.public_key for channel in channels}) == 20

    def test_a_machine_opens_what_was_sealed_and_answers(self) -> None:
        channel = AttemptChannel(PROVIDER_KEY)
        machine = SealedChannel(PROVIDER, parse_public_key(channel.public_key))
        assert machine.open(channel.seal(REQUEST)) == REQUEST
        assert channel.open(machine.seal(CHUNK)) == CHUNK

    def test_an_answer_to_another_attempt_does_not_open(self) -> None:
        first, second = AttemptChannel(PROVIDER_KEY), AttemptChannel(PROVIDER_KEY)
        answer = SealedChannel(PROVIDER, parse_public_key(first.public_key)).seal(CHUNK)
        with pytest.raises(SealingError):
            second.open(answer)

    @pytest.mark.parametrize(
        ("text", "usable"),
        [(PROVIDER_KEY, True), ("", False), ("AAAA", False), (base64.b64encode(bytes(32)).decode(), False)],
    )
    def test_a_key_is_known_by_its_form(self, text: str, usable: bool) -> None:
        assert NaclSealing().is_key(text) is usable
        if not usable:
            with pytest.raises(ValueError, match="key"):
                NaclSealing().channel(text)
