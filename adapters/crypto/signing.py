"""P-256 signatures as the provider protocol writes them (attestation, section 2).

Public keys are base64 of the raw point: 64 bytes X‖Y, or 65 bytes with a leading ``0x04``. Signatures are base64
of the DER sequence of r and s, over SHA-256 of the message.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

_ALGORITHM = ec.ECDSA(hashes.SHA256())


class SignatureRejected(ValueError):
    """The public key or the signature is malformed, or the signature is not over this message."""


def public_key_text(key: ec.EllipticCurvePrivateKey) -> str:
    numbers = key.public_key().public_numbers()
    return base64.b64encode(numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")).decode()


def parse_public_key(text: str) -> ec.EllipticCurvePublicKey:
    """Parse a base64 point of 64 or 65 bytes.

    Raises:
        SignatureRejected: not base64, another length or prefix, or not a point on P-256.
    """
    raw = _unbase64(text, "public key")
    if len(raw) == 65 and raw[0] == 4:
        raw = raw[1:]
    if len(raw) != 64:
        raise SignatureRejected("the public key is not a P-256 point of 64 bytes")
    x, y = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        raise SignatureRejected("the public key is not on P-256") from None


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> str:
    return base64.b64encode(key.sign(message, _ALGORITHM)).decode()


def verify(public_key: str, signature: str, message: bytes) -> None:
    """Check a signature.

    Raises:
        SignatureRejected: for every reason why it does not hold.
    """
    key = parse_public_key(public_key)
    raw = _unbase64(signature, "signature")
    try:
        # Encoding what was decoded shows trailing bytes and other forms of DER that the parser lets through.
        strict = encode_dss_signature(*decode_dss_signature(raw)) == raw
        if not strict:
            raise SignatureRejected("the signature is not strict DER")
        key.verify(raw, message, _ALGORITHM)
    except (InvalidSignature, ValueError) as error:
        if isinstance(error, SignatureRejected):
            raise
        raise SignatureRejected("the signature does not verify") from None


def _unbase64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureRejected(f"the {what} is not base64") from None
