"""This deployment's own session key: a P-256 private key in a file, which also keys the hashes of short codes."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import time
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from adapters.identity.tokens import ALGORITHM, TrustedIssuer, VerificationKeys

ISSUER = "darkbloom"
AUDIENCE = "darkbloom"


class SessionKeyUnusable(ValueError):
    """The file of the session key cannot be used; the message says what to do."""


class SessionKey:
    def __init__(self, key: EllipticCurvePrivateKey, token_seconds: int) -> None:
        self._key = key
        self.token_seconds = token_seconds
        private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        self._code_key = HKDF(SHA256(), length=32, salt=None, info=b"darkbloom short codes v1").derive(private)

    @classmethod
    def from_file(cls, path: Path, token_seconds: int) -> SessionKey:
        """Read the key, and make it first where there is none.

        Raises:
            SessionKeyUnusable: the file is no such key, or others may read it.
        """
        try:
            if not path.exists():
                _create(path)
            mode, text = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
            key = load_pem_private_key(text, None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SessionKeyUnusable(f"the session key {path} cannot be read: {type(error).__name__}") from None
        if mode & 0o077:
            raise SessionKeyUnusable(f"others can read the session key {path}; run: chmod 600 {path}")
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise SessionKeyUnusable(f"the session key {path} is not a P-256 private key")
        return cls(key, token_seconds)

    @property
    def issuer(self) -> TrustedIssuer:
        """What verifies the tokens that are issued here."""
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return TrustedIssuer(ISSUER, AUDIENCE, VerificationKeys.parse(pem.decode()), ours=True)

    def token(self, subject: str, session_id: str) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "sid": session_id, "iat": now}
        return jwt.encode(claims | {"exp": now + self.token_seconds}, self._key, algorithm=ALGORITHM)

    def code_hash(self, *parts: str) -> str:
        """A hash for codes that are short enough to be guessed by whoever has only the database."""
        message = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.new(self._code_key, message.encode(), hashlib.sha256).hexdigest()


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(fresh, path)  # a link never replaces the key that another process made meanwhile
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
