"""Keys, tokens and the lock: files that belong to one owner and one process."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adapters.crypto import signing
from agent.auth_token import read_auth_token
from agent.errors import AlreadyRunning, IdentityUnusable
from agent.files import create_private, private_directory
from agent.identity import load_identity
from agent.lock import InstanceLock


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestIdentity:
    def test_the_signing_key_persists_and_the_box_key_does_not(self, tmp_path: Path) -> None:
        first, second = load_identity(tmp_path), load_identity(tmp_path)
        assert first.signing_public == second.signing_public
        assert first.box_public != second.box_public

    def test_the_key_file_is_private_and_nothing_else_is_left_behind(self, tmp_path: Path) -> None:
        load_identity(tmp_path)
        assert mode(tmp_path / "identity.pem") == 0o600
        assert list(tmp_path.iterdir()) == [tmp_path / "identity.pem"]

    def test_a_key_file_that_others_can_read_is_tightened(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        load_identity(tmp_path)
        (tmp_path / "identity.pem").chmod(0o644)
        with caplog.at_level(logging.WARNING):
            load_identity(tmp_path)
        assert mode(tmp_path / "identity.pem") == 0o600
        assert "identity.pem was open to other users" in caplog.text

    def test_a_corrupt_key_file_is_an_error_and_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "identity.pem"
        path.write_bytes(b"not a key")
        with pytest.raises(IdentityUnusable, match=r"identity\.pem does not hold a P-256 private key"):
            load_identity(tmp_path)
        assert path.read_bytes() == b"not a key"

    def test_a_key_of_another_curve_is_an_error(self, tmp_path: Path) -> None:
        pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / "identity.pem").write_bytes(pem)
        with pytest.raises(IdentityUnusable):
            load_identity(tmp_path)

    def test_signatures_verify_with_the_public_key(self, tmp_path: Path) -> None:
        identity = load_identity(tmp_path)
        signing.verify(identity.signing_public, identity.sign(b"message"), b"message")

    def test_no_secret_stands_in_the_repr(self, tmp_path: Path) -> None:
        assert "secret" not in repr(load_identity(tmp_path))


class TestFiles:
    def test_a_private_file_is_never_replaced(self, tmp_path: Path) -> None:
        create_private(tmp_path / "file", b"first")
        with pytest.raises(FileExistsError):
            create_private(tmp_path / "file", b"second")
        assert (tmp_path / "file").read_bytes() == b"first"
        assert list(tmp_path.iterdir()) == [tmp_path / "file"]

    def test_the_state_root_is_private_even_when_it_was_not(self, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir(mode=0o755)
        assert mode(private_directory(tmp_path / "home")) == 0o700
        assert mode(private_directory(tmp_path / "new" / "home")) == 0o700


class TestAuthToken:
    def test_no_file_is_no_token(self, tmp_path: Path) -> None:
        assert read_auth_token(tmp_path / "auth_token") == ""

    def test_the_token_is_trimmed_and_its_file_tightened(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "auth_token"
        path.write_text("  eigeninference-pt-1\n")
        path.chmod(0o640)
        with caplog.at_level(logging.WARNING):
            assert read_auth_token(path) == "eigeninference-pt-1"
        assert mode(path) == 0o600
        assert "auth_token was open to other users" in caplog.text
        assert "eigeninference-pt" not in caplog.text

    def test_a_token_that_cannot_be_read_is_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "auth_token").mkdir(mode=0o700)
        assert read_auth_token(tmp_path / "auth_token") == ""
        assert "is not linked to an account" in caplog.text


class TestLock:
    def test_a_second_instance_is_refused_with_the_first_ones_pid(self, tmp_path: Path) -> None:
        lock = InstanceLock(tmp_path)
        with pytest.raises(AlreadyRunning, match=f"PID {os.getpid()}") as caught:
            InstanceLock(tmp_path)
        assert caught.value.exit_code == 9
        lock.release()
        InstanceLock(tmp_path).release()
