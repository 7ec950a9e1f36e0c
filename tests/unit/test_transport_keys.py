from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey

from adapters.crypto.transport import (
    PREVIOUS_SECONDS,
    RELOAD_SECONDS,
    KeyFile,
    KeyRing,
    KeyUnusable,
    TransportKey,
    TransportKeys,
    ring_of_mnemonics,
    secret_of_mnemonic,
)
from domain.errors import DarkbloomError, DecryptionFailed, InvalidSealedEnvelope, KidMismatch

MNEMONIC = "abandon " * 11 + "about"
KEY = TransportKey(bytes(range(32)))
BODY = b'{"model":"m"}'


def sealed(key: TransportKey = KEY, body: bytes = BODY) -> tuple[str, str, str, Box]:
    """(kid, ephemeral public key, ciphertext) and what opens the answer."""
    secret = PrivateKey.generate()
    box = Box(secret, key.secret.public_key)
    ephemeral = base64.b64encode(bytes(secret.public_key)).decode()
    return key.kid, ephemeral, base64.b64encode(box.encrypt(body)).decode(), box


@pytest.fixture
def keys() -> TransportKeys:
    return TransportKeys(lambda: KeyRing(KEY))


class TestMnemonics:
    def test_the_published_vector_is_derived(self) -> None:
        secret = secret_of_mnemonic(f"  {MNEMONIC}\n")
        assert secret.hex() == "32c2f4d9e1c15c41c390b8a26ed14488548ed6033648eb9e38a08421792ce17b"
        key = TransportKey(secret)
        assert key.public_key == "LlrlPfsDzmMf7orE/cMuD1TI2D2EuE1qt7p7rhcvjRw="
        assert key.kid == "96293a4d0473cb36"

    @pytest.mark.parametrize("count", [0, 1, 11, 13, 23, 25])
    def test_another_number_of_words_is_refused_without_being_quoted(self, count: int) -> None:
        with pytest.raises(KeyUnusable, match="12 or 24 words") as refused:
            secret_of_mnemonic("abandon " * count)
        assert "abandon" not in str(refused.value)

    def test_24_words_are_fine(self) -> None:
        assert len(secret_of_mnemonic("abandon " * 24)) == 32

    def test_the_words_before_stay_valid_for_a_day(self) -> None:
        ring = ring_of_mnemonics(MNEMONIC, "zoo " * 12, 1000.0)
        assert ring.previous is not None
        assert ring.previous_until == 1000.0 + PREVIOUS_SECONDS
        assert ring_of_mnemonics(MNEMONIC, "", 0.0).previous is None


class TestOpening:
    def test_a_sealed_request_opens_and_its_answer_opens_for_the_sender(self, keys: TransportKeys) -> None:
        kid, ephemeral, ciphertext, box = sealed()
        for named in (kid, ""):
            opened = keys.open(named, ephemeral, ciphertext)
            assert (opened.body, opened.kid) == (BODY, KEY.kid)
            assert box.decrypt(base64.b64decode(opened.channel.seal(b"answer"))) == b"answer"

    def test_no_two_requests_share_their_use(self, keys: TransportKeys) -> None:
        uses = {keys.open(*sealed()[:3]).use for _ in range(20)}
        assert len(uses) == 20
        assert {len(use) for use in uses} == {56}

    def test_the_key_is_named_before_anything_else_is_looked_at(self, keys: TransportKeys) -> None:
        with pytest.raises(KidMismatch):
            keys.open("0123456789abcdef", "not base64!", "neither!")

    @pytest.mark.parametrize("ephemeral", ["", "AAAA", "not base64!", "Zm9v Zm", base64.b64encode(bytes(33)).decode()])
    def test_a_consumers_key_of_another_form_is_no_envelope(self, keys: TransportKeys, ephemeral: str) -> None:
        with pytest.raises(InvalidSealedEnvelope, match="ephemeral_public_key"):
            keys.open(KEY.kid, ephemeral, "neither!")

    @pytest.mark.parametrize("ciphertext", ["", "not base64!", base64.b64encode(bytes(23)).decode(), "ä", "AAA"])
    def test_a_ciphertext_of_another_form_is_no_envelope(self, keys: TransportKeys, ciphertext: str) -> None:
        with pytest.raises(InvalidSealedEnvelope, match="ciphertext"):
            keys.open(KEY.kid, sealed()[1], ciphertext)

    @pytest.mark.parametrize("length", [24, 39, 40, 64, 1000])
    def test_what_does_not_open_says_no_more_than_that(self, keys: TransportKeys, length: int) -> None:
        with pytest.raises(DecryptionFailed) as refused:
            keys.open(KEY.kid, sealed()[1], base64.b64encode(bytes(length)).decode())
        assert refused.value.__cause__ is None

    @pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), bytes.fromhex("ecff" + "ff" * 29 + "7f")])
    def test_a_point_with_which_no_secret_can_be_agreed_opens_nothing(self, keys: TransportKeys, point: bytes) -> None:
        with pytest.raises(DecryptionFailed):
            keys.open(KEY.kid, base64.b64encode(point).decode(), sealed()[2])

    @given(st.data())
    def test_one_changed_bit_anywhere_opens_nothing(self, data: st.DataObject) -> None:
        keys = TransportKeys(lambda: KeyRing(KEY))
        kid, ephemeral, ciphertext, _ = sealed()
        raw = bytearray(base64.b64decode(ciphertext))
        bit = data.draw(st.integers(0, len(raw) * 8 - 1))
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecryptionFailed):
            keys.open(kid, ephemeral, base64.b64encode(raw).decode())

    @given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
    def test_any_texts_are_refused_with_an_error_of_ours(self, kid: str, ephemeral: str, ciphertext: str) -> None:
        with pytest.raises(DarkbloomError) as refused:
            TransportKeys(lambda: KeyRing(KEY)).open(kid, ephemeral, ciphertext)
        assert refused.value.http_status == 400


class TestKeyFile:
    def test_the_first_rotation_makes_the_key(self, tmp_path: Path) -> None:
        file = KeyFile(tmp_path / "new" / "sealing.key")
        made = file.rotate()
        assert file.path.stat().st_mode & 0o777 == 0o600
        ring = file.read()
        assert (ring.current.kid, ring.previous) == (made.kid, None)

    def test_a_rotation_keeps_the_key_before_for_a_day(self, tmp_path: Path) -> None:
        file = KeyFile(tmp_path / "sealing.key")
        first, second = file.rotate(), file.rotate()
        os.utime(tmp_path / "sealing.key.previous", (1000, 1000))
        ring = file.read()
        assert ring.previous is not None
        assert (ring.current.kid, ring.previous.kid) == (second.kid, first.kid)
        assert ring.previous_until == 1000 + PREVIOUS_SECONDS

    @pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
    def test_a_file_of_another_length_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "sealing.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyUnusable, match="32 raw bytes"):
            KeyFile(path).read()

    def test_a_file_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        file = KeyFile(tmp_path / "sealing.key")
        file.rotate()
        file.path.chmod(0o640)
        with pytest.raises(KeyUnusable, match="chmod 600"):
            file.read()

    def test_a_missing_file_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(KeyUnusable, match="FileNotFoundError"):
            KeyFile(tmp_path / "none").read()


class TestRotation:
    @pytest.fixture
    def now(self) -> list[float]:
        return [1000.0]

    @pytest.fixture
    def clock(self, now: list[float]) -> Callable[[], float]:
        return lambda: now[0]

    def test_both_keys_open_for_a_day_and_then_one(self, now: list[float], clock: Callable[[], float]) -> None:
        old, new = TransportKey(b"o" * 32), TransportKey(b"n" * 32)
        rings = [KeyRing(old)]
        keys = TransportKeys(lambda: rings[0], clock=clock)
        assert keys.open(*sealed(old)[:3]).kid == old.kid
        rings[0] = KeyRing(new, old, now[0] + PREVIOUS_SECONDS)
        assert keys.current.kid == old.kid  # not looked at again yet
        now[0] += RELOAD_SECONDS
        assert keys.current.kid == new.kid
        assert keys.open(*sealed(old)[:3]).kid == old.kid
        assert keys.open(*sealed(new)[:3]).kid == new.kid
        now[0] += PREVIOUS_SECONDS
        with pytest.raises(KidMismatch):
            keys.open(*sealed(old)[:3])

    def test_a_request_that_names_no_key_is_for_the_present_one(self, clock: Callable[[], float]) -> None:
        old, new = TransportKey(b"o" * 32), TransportKey(b"n" * 32)
        keys = TransportKeys(lambda: KeyRing(new, old, 1e12), clock=clock)
        with pytest.raises(DecryptionFailed):
            keys.open("", *sealed(old)[1:3])

    def test_a_file_that_vanished_changes_nothing(
        self, tmp_path: Path, now: list[float], clock: Callable[[], float], caplog: pytest.LogCaptureFixture
    ) -> None:
        file = KeyFile(tmp_path / "sealing.key")
        made = file.rotate()
        keys = TransportKeys(file.read, clock=clock)
        file.path.unlink()
        now[0] += RELOAD_SECONDS
        assert keys.current.kid == made.kid
        assert "stays as it was" in caplog.text
