"""The attestation challenge: is the same key still there, and what posture does it report (attestation, section 6)."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime

from api.ports import Sealing
from domain.protocol import AttestationChallenge, AttestationResponse, canonical_status, challenge_message

OPEN_MODE_SIGNATURE = "unsigned"
"""What a machine without a signing key sends; it only shows that it is alive."""


class Strike(ValueError):
    """The answer does not count; three in a row end the trust."""


class Breach(ValueError):
    """The answer itself shows that the machine must not be trusted."""


def new_challenge() -> AttestationChallenge:
    return AttestationChallenge(
        nonce=base64.b64encode(secrets.token_bytes(32)).decode(),
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def check_answer(
    challenge: AttestationChallenge,
    answer: AttestationResponse,
    *,
    encryption_key: str,
    signing_key: str,
    sealing: Sealing,
    development: bool,
) -> None:
    """Check an answer to this very challenge, in the order of the specification.

    Development mode takes posture as it is reported, because no Mac may be there; keys and signatures it never waives.

    Raises:
        Strike: see there.
        Breach: see there.
    """
    if answer.nonce != challenge.nonce:
        raise Strike("the nonce is not the one that was sent")
    if answer.public_key != encryption_key:
        raise Strike("the answer names another encryption key")
    if not answer.signature:
        raise Strike("the answer is not signed")
    if signing_key:
        _check_signatures(challenge, answer, signing_key, sealing)
    if not development:
        _check_posture(answer)


def _check_signatures(
    challenge: AttestationChallenge, answer: AttestationResponse, signing_key: str, sealing: Sealing
) -> None:
    try:
        sealing.verify(signing_key, answer.signature, challenge_message(challenge.nonce, challenge.timestamp))
        sealing.verify(signing_key, answer.status_signature, canonical_status(answer, challenge.timestamp))
    except ValueError:
        raise Strike("a signature does not verify") from None


def _check_posture(answer: AttestationResponse) -> None:
    if answer.sip_enabled is None or answer.secure_boot_enabled is None or answer.rdma_disabled is None:
        raise Strike("the posture is incomplete")
    if not answer.sip_enabled:
        raise Breach("System Integrity Protection is off")
    if not answer.secure_boot_enabled:
        raise Breach("Secure Boot is off")
    if not answer.rdma_disabled and not answer.hypervisor_active:
        raise Breach("RDMA is on without an active hypervisor")
