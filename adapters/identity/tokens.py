"""Session tokens: JWTs under ES256, of this deployment and of the issuers that it trusts (consumer API, section 3.4).

Which key verifies a token follows from the issuer that it names and from the configuration, never from a key or an
address in the token itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from domain.errors import AuthenticationFailed
from domain.people import SessionClaims

ALGORITHM = "ES256"
LEEWAY_SECONDS = 30
TOKEN_CHARACTERS_MAX = 8_192
SUBJECT_CHARACTERS_MAX = 256
_REQUIRED = ["exp", "iss", "aud", "sub"]


class KeyUnusable(ValueError):
    """A verification key is not a P-256 public key in PEM, nor a JWK set of such keys."""


class VerificationKeys:
    """The public keys of one issuer. A single key signs everything; of a set, ``kid`` says which one."""

    def __init__(self, keys: Mapping[str, EllipticCurvePublicKey], *, named: bool) -> None:
        self._keys = dict(keys)
        self._named = named

    @classmethod
    def parse(cls, text: str) -> VerificationKeys:
        r"""Read PEM, whose line ends may be written as ``\n``, or a JWK set.

        Raises:
            KeyUnusable: it is neither, or a key is not of the curve P-256.
        """
        text = text.strip()
        return cls._of_set(text) if text.startswith("{") else cls({"": _pem(text.replace("\\n", "\n"))}, named=False)

    @classmethod
    def _of_set(cls, text: str) -> VerificationKeys:
        try:
            found = jwt.PyJWKSet.from_dict(json.loads(text)).keys
        except (ValueError, TypeError, AttributeError, jwt.PyJWTError) as error:
            raise KeyUnusable(f"the JWK set cannot be read: {type(error).__name__}") from None
        keys = {key.key_id or "": _on_p256(key.key) for key in found}
        if len(keys) != len(found):
            raise KeyUnusable("each key of a JWK set needs a kid of its own")
        return cls(keys, named=len(keys) > 1)

    def of(self, kid: object) -> EllipticCurvePublicKey | None:
        if not self._named:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None


def _pem(text: str) -> EllipticCurvePublicKey:
    try:
        return _on_p256(load_pem_public_key(text.encode()))
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable("the verification key is not a P-256 public key in PEM") from None


def _on_p256(key: object) -> EllipticCurvePublicKey:
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise KeyUnusable("the verification key is not on the curve P-256, which ES256 needs")
    return key


class TrustedIssuer(NamedTuple):
    name: str
    audience: str
    keys: VerificationKeys
    ours: bool = False


class TokenVerifier:
    def __init__(self, issuers: Sequence[TrustedIssuer]) -> None:
        self._issuers = {issuer.name: issuer for issuer in issuers}

    def verify(self, token: str) -> SessionClaims:
        """Check a token's signature, issuer, audience and times.

        Raises:
            AuthenticationFailed: any of it is wrong; which, is nobody's business.
        """
        claims, issuer = self._claims_of(token)
        subject, session = claims["sub"], claims.get("sid")
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARACTERS_MAX or not subject.isprintable():
            raise _refused()
        return SessionClaims(issuer.name, subject, _session_id(issuer, session, token), int(claims["exp"]), issuer.ours)

    def _claims_of(self, token: str) -> tuple[dict[str, Any], TrustedIssuer]:
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise _refused()
        try:
            header, claimed = _unverified(token)
            issuer = self._issuers.get(claimed) if isinstance(claimed, str) else None
            key = issuer.keys.of(header.get("kid")) if issuer else None
            if issuer is None or key is None or "crit" in header:
                raise _refused()
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=issuer.name,
                audience=issuer.audience,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED, "strict_aud": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            raise _refused() from None
        return claims, issuer


def _refused() -> AuthenticationFailed:
    return AuthenticationFailed("This session has expired or is not valid; sign in again.")


def _unverified(token: str) -> tuple[dict[str, Any], object]:
    """The header, and which issuer the token says it is of."""
    parsed = jwt.decode_complete(token, options={"verify_signature": False})
    return parsed["header"], parsed["payload"].get("iss")


def _session_id(issuer: TrustedIssuer, sid: object, token: str) -> str:
    """Our own sessions are known by ``sid`` itself, those of others by a hash; without a ``sid`` of the token."""
    if issuer.ours:
        return sid if isinstance(sid, str) else ""
    named = f"{issuer.name}\0{sid}" if isinstance(sid, str) and sid else token
    return f"ses_{hashlib.sha256(named.encode()).hexdigest()[:32]}"
