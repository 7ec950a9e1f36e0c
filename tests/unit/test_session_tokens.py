"""Session tokens: what ours say, and that no trick makes another one pass."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256K1,
    SECP256R1,
    SECP384R1,
    EllipticCurve,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from adapters.identity.session_key import ISSUER, SessionKey, SessionKeyUnusable
from adapters.identity.tokens import KeyUnusable, TokenVerifier, TrustedIssuer, VerificationKeys
from domain.errors import AuthenticationFailed

APP = "app-123"
SUBJECT = "did:privy:cl1234"


def pem_of(key: EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def jwks_of(**keys: EllipticCurvePrivateKey) -> str:
    found = []
    for kid, key in keys.items():
        found.append(json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "alg": "ES256", "use": "sig"})
    return json.dumps({"keys": found})


KEY = generate_private_key(SECP256R1())
OTHER = generate_private_key(SECP256R1())
VERIFIER = TokenVerifier([TrustedIssuer("privy.io", APP, VerificationKeys.parse(pem_of(KEY)))])


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {"iss": "privy.io", "aud": APP, "sub": SUBJECT, "sid": "session-1", "iat": now, "exp": now + 3_600} | changes
    return {name: value for name, value in made.items() if value is not None}


def token(key: Any = KEY, algorithm: str = "ES256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def parts(header: dict[str, Any], body: Any, signature: bytes = b"") -> str:
    encoded = (json.dumps(header).encode(), body if isinstance(body, bytes) else json.dumps(body).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in encoded)


def under_the_public_key(algorithm: str) -> str:
    """What a verifier accepts that lets the token choose: the public key's text as the secret of a MAC."""
    unsigned = parts({"alg": algorithm, "typ": "JWT"}, claims()).rpartition(".")[0]
    mac = hmac.new(pem_of(KEY).encode(), unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def resigned(**header: Any) -> str:
    """A token of ours with other members in its header, signed by the right key over them."""
    return token(headers=header)


def test_a_valid_token_says_who_it_is() -> None:
    found = VERIFIER.verify(token())
    assert (found.issuer, found.subject, found.ours) == ("privy.io", SUBJECT, False)
    assert found.session_id.startswith("ses_")
    assert found.session_id == VERIFIER.verify(token(exp=int(time.time()) + 99)).session_id
    assert found.session_id != VERIFIER.verify(token(sid="session-2")).session_id
    assert VERIFIER.verify(token(sid=None)).session_id != VERIFIER.verify(token(sid=None, iat=1)).session_id


@pytest.mark.parametrize("late", [0, 25])
def test_clocks_may_differ_by_half_a_minute(late: int) -> None:
    now = int(time.time())
    VERIFIER.verify(token(exp=now - late + 2))
    VERIFIER.verify(token(iat=now + late))
    VERIFIER.verify(token(nbf=now + late))


TRICKS: dict[str, Callable[[], str]] = {
    "no signature at all": lambda: parts({"alg": "none", "typ": "JWT"}, claims()),
    "none, written otherwise": lambda: parts({"alg": "nOnE", "typ": "JWT"}, claims()),
    "ES256 with an empty signature": lambda: parts({"alg": "ES256", "typ": "JWT"}, claims()),
    "a signature of zeros": lambda: parts({"alg": "ES256", "typ": "JWT"}, claims(), bytes(64)),
    "a MAC under the public key": lambda: under_the_public_key("HS256"),
    "that MAC called ES256": lambda: under_the_public_key("ES256"),
    "another key": lambda: token(OTHER),
    "another key in the header": lambda: token(
        OTHER, headers={"jwk": json.loads(ECAlgorithm.to_jwk(OTHER.public_key()))}
    ),
    "an address of keys": lambda: token(OTHER, headers={"jku": "https://example.com/keys.json"}),
    "a certificate": lambda: token(OTHER, headers={"x5u": "https://example.com/cert.pem", "x5c": ["MII="]}),
    "a kid that is a path": lambda: token(OTHER, headers={"kid": "../../dev/null"}),
    "ES384": lambda: token(generate_private_key(SECP384R1()), "ES384"),
    "ES256K": lambda: token(generate_private_key(SECP256K1()), "ES256K"),
    "a critical extension": lambda: resigned(crit=["exp-2"], **{"exp-2": 1}),
    "an unencoded payload": lambda: resigned(b64=False, crit=["b64"]),
    "an empty subject": lambda: token(sub=""),
    "a subject that is a number": lambda: parts({"alg": "ES256"}, claims(sub=5)),
    "an endless subject": lambda: token(sub="x" * 300),
    "a subject of two lines": lambda: token(sub="did:privy:1\n2"),
    "no subject": lambda: token(sub=None),
    "no expiry": lambda: token(exp=None),
    "no audience": lambda: token(aud=None),
    "no issuer": lambda: token(iss=None),
    "another audience": lambda: token(aud="app-124"),
    "one audience of several": lambda: token(aud=[APP, "app-124"]),
    "another issuer": lambda: token(iss="privy.example"),
    "a list of issuers": lambda: parts({"alg": "ES256"}, claims(iss=["privy.io"])),
    "our own issuer": lambda: token(iss=ISSUER, aud=ISSUER),
    "expired": lambda: token(exp=int(time.time()) - 35),
    "from the future": lambda: token(iat=int(time.time()) + 90),
    "not valid yet": lambda: token(nbf=int(time.time()) + 90),
    "an endless expiry": lambda: parts({"alg": "ES256"}, b'{"iss":"privy.io","aud":"app-123","sub":"a","exp":1e999}'),
    "an expiry that is no number": lambda: token(exp=None, headers={"exp": 5}),
    "too long": lambda: token(sub="x", pad="y" * 9_000),
    "deep": lambda: parts({"alg": "ES256"}, b'{"a":' * 1_200 + b"1" + b"}" * 1_200),
    "not JSON": lambda: parts({"alg": "ES256"}, b"\xff\xfe"),
    "not an object": lambda: parts({"alg": "ES256"}, [1]),
    "two parts": lambda: "eyJh.eyJi",
    "four parts": lambda: token() + ".eyJ",
    "nothing": lambda: "eyJ",
    "white space": lambda: token().replace(".", " ."),
    "not base64": lambda: "eyJ\u00e9.eyJ.eyJ",
    "encrypted": lambda: "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..a.b.c",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_passes(trick: str) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        VERIFIER.verify(TRICKS[trick]())
    assert refused.value.http_status == 401


def test_a_signature_is_of_these_very_claims() -> None:
    header, body, signature = token().split(".")
    changed = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed["sub"] = "did:privy:somebody-else"
    forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
    with pytest.raises(AuthenticationFailed):
        VERIFIER.verify(f"{header}.{forged}.{signature}")


def test_each_issuer_has_its_own_keys() -> None:
    both = TokenVerifier(
        [
            TrustedIssuer("privy.io", APP, VerificationKeys.parse(pem_of(KEY))),
            TrustedIssuer("else", "there", VerificationKeys.parse(pem_of(OTHER))),
        ]
    )
    assert both.verify(token(OTHER, iss="else", aud="there")).issuer == "else"
    for crossed in (token(OTHER), token(KEY, iss="else", aud="there"), token(OTHER, iss="else")):
        with pytest.raises(AuthenticationFailed):
            both.verify(crossed)


class TestKeys:
    def test_the_line_ends_of_pem_may_be_written_out(self) -> None:
        escaped = pem_of(KEY).replace("\n", "\\n")
        TokenVerifier([TrustedIssuer("privy.io", APP, VerificationKeys.parse(escaped))]).verify(token())

    def test_of_a_set_the_kid_says_which_key(self) -> None:
        verifier = TokenVerifier([TrustedIssuer("privy.io", APP, VerificationKeys.parse(jwks_of(one=KEY, two=OTHER)))])
        verifier.verify(token(headers={"kid": "one"}))
        verifier.verify(token(OTHER, headers={"kid": "two"}))
        for wrong in (token(headers={"kid": "two"}), token(headers={"kid": "three"}), token()):
            with pytest.raises(AuthenticationFailed):
                verifier.verify(wrong)

    def test_a_set_of_one_key_needs_no_kid(self) -> None:
        TokenVerifier([TrustedIssuer("privy.io", APP, VerificationKeys.parse(jwks_of(one=KEY)))]).verify(token())

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "not a key",
            "{}",
            '{"keys": []}',
            '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        ],
    )
    def test_what_is_no_key_is_refused_at_the_start(self, text: str) -> None:
        with pytest.raises(KeyUnusable):
            VerificationKeys.parse(text)

    @pytest.mark.parametrize("curve", [SECP384R1(), SECP256K1()])
    def test_a_key_of_another_curve_is_refused_at_the_start(self, curve: EllipticCurve) -> None:
        with pytest.raises(KeyUnusable, match="P-256"):
            VerificationKeys.parse(pem_of(generate_private_key(curve)))


class TestOurOwn:
    def test_a_token_has_the_shape_of_privys(self, tmp_path: Path) -> None:
        key = SessionKey.from_file(tmp_path / "session.key", 60)
        made = key.token("did:darkbloom:1", "ses_1")
        body = jwt.decode(made, options={"verify_signature": False})
        assert made.startswith("eyJ")
        assert jwt.get_unverified_header(made)["alg"] == "ES256"
        assert set(body) == {"iss", "aud", "sub", "sid", "iat", "exp"}
        assert body["exp"] - body["iat"] == 60
        found = TokenVerifier([key.issuer]).verify(made)
        assert (found.subject, found.session_id, found.ours) == ("did:darkbloom:1", "ses_1", True)

    def test_the_key_is_made_once_and_closed_to_others(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "session.key"
        first, again = SessionKey.from_file(path, 60), SessionKey.from_file(path, 60)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        TokenVerifier([again.issuer]).verify(first.token("did:darkbloom:1", "ses_1"))
        assert first.code_hash("a", "bc") == again.code_hash("a", "bc") != first.code_hash("ab", "c")
        assert [file.name for file in path.parent.iterdir()] == ["session.key"]

    def test_a_key_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "session.key"
        SessionKey.from_file(path, 60)
        path.chmod(0o640)
        with pytest.raises(SessionKeyUnusable, match="chmod 600"):
            SessionKey.from_file(path, 60)

    @pytest.mark.parametrize("content", [b"", b"nonsense", pem_of(KEY).encode()])
    def test_a_damaged_file_is_not_replaced(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "session.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(SessionKeyUnusable):
            SessionKey.from_file(path, 60)
        assert path.read_bytes() == content
