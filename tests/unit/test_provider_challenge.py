from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adapters.crypto import signing
from adapters.crypto.sealing import NaclSealing
from api.providers.challenge import OPEN_MODE_SIGNATURE, Breach, Strike, check_answer, new_challenge
from domain.protocol import AttestationChallenge, AttestationResponse, canonical_status, challenge_message

KEY = ec.derive_private_key(7, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(8, ec.SECP256R1())
SIGNING_KEY = signing.public_key_text(KEY)
ENCRYPTION_KEY = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="
CHALLENGE = AttestationChallenge("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "2026-05-01T12:00:00Z")


def signed(answer: AttestationResponse, key: ec.EllipticCurvePrivateKey = KEY) -> AttestationResponse:
    return msgspec.structs.replace(
        answer,
        signature=signing.sign(key, challenge_message(answer.nonce, CHALLENGE.timestamp)),
        status_signature=signing.sign(key, canonical_status(answer, CHALLENGE.timestamp)),
    )


def answer(**changes: Any) -> AttestationResponse:
    values: dict[str, Any] = {
        "nonce": CHALLENGE.nonce,
        "signature": "",
        "public_key": ENCRYPTION_KEY,
        "sip_enabled": True,
        "secure_boot_enabled": True,
        "rdma_disabled": True,
        "hypervisor_active": False,
    }
    return AttestationResponse(**{**values, **changes})


def check(given: AttestationResponse, *, signing_key: str = SIGNING_KEY, development: bool = False) -> None:
    check_answer(
        CHALLENGE,
        given,
        encryption_key=ENCRYPTION_KEY,
        signing_key=signing_key,
        sealing=NaclSealing(),
        development=development,
    )


class TestNewChallenges:
    def test_a_nonce_is_32_random_bytes(self) -> None:
        nonces = {new_challenge().nonce for _ in range(100)}
        assert len(nonces) == 100
        assert {len(base64.b64decode(nonce, validate=True)) for nonce in nonces} == {32}

    def test_the_time_is_utc_in_whole_seconds(self) -> None:
        timestamp = new_challenge().timestamp
        assert datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) <= datetime.now(UTC)
        assert len(timestamp) == 20


class TestAnswers:
    def test_a_signed_answer_with_a_sound_posture_passes(self) -> None:
        check(signed(answer()))

    def test_the_published_answer_passes(self) -> None:
        given = AttestationResponse(
            nonce=CHALLENGE.nonce,
            signature=(
                "MEYCIQCVUz/iuSEwDMOsQojPTw3FA+KhbX5iH5c8FYm8GgtF+gIhAOZw4V+DHznqKJg8s86JXRV8WRQMaoU/mqJXNzDc4QEY"
            ),
            public_key=ENCRYPTION_KEY,
            status_signature=(
                "MEQCIEywfv0OeyP0MgUtm6QPGNcRE3oxYua92n81WfDfr2mwAiAsTRclMA8fK5UqOi98VhY5ETBZLjYrYzgys8COwVVCXg=="
            ),
            hypervisor_active=False,
            rdma_disabled=True,
            sip_enabled=True,
            secure_boot_enabled=True,
            binary_hash="a" * 64,
            runtime_hash="b" * 64,
            template_hashes={"chatml": "c" * 64},
            model_hashes={"demo/model-4bit": "d" * 64},
        )
        vector_key = "OVcU/T2NYNz0BXnkyBi7MJ3pXEKl8KhSQzNzEu7lL+lOcZTvxMxHupQlhHlFieaL2RoMAasrrPUZcTHZ7wq2vw=="
        check(given, signing_key=vector_key)

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            (signed(answer(nonce="another")), "the nonce is not the one that was sent"),
            (signed(answer(nonce=CHALLENGE.nonce + " ")), "the nonce is not the one that was sent"),
            (signed(answer(public_key="another")), "the answer names another encryption key"),
            (answer(), "the answer is not signed"),
            (signed(answer(), OTHER_KEY), "a signature does not verify"),
            (msgspec.structs.replace(signed(answer()), status_signature=""), "a signature does not verify"),
            (answer(signature=OPEN_MODE_SIGNATURE), "a signature does not verify"),
            (msgspec.structs.replace(signed(answer()), binary_hash="f" * 64), "a signature does not verify"),
            (
                msgspec.structs.replace(signed(answer(sip_enabled=False)), sip_enabled=True),
                "a signature does not verify",
            ),
            (
                msgspec.structs.replace(signed(answer(sip_enabled=False)), sip_enabled=None),
                "a signature does not verify",
            ),
            (signed(answer(sip_enabled=None)), "the posture is incomplete"),
            (signed(answer(secure_boot_enabled=None)), "the posture is incomplete"),
            (signed(answer(rdma_disabled=None)), "the posture is incomplete"),
            (signed(answer(rdma_disabled=None, hypervisor_active=True)), "the posture is incomplete"),
        ],
    )
    def test_each_strike(self, given: AttestationResponse, problem: str) -> None:
        with pytest.raises(Strike, match=problem):
            check(given)

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"sip_enabled": False}, "System Integrity Protection is off"),
            ({"secure_boot_enabled": False}, "Secure Boot is off"),
            ({"rdma_disabled": False}, "RDMA is on without an active hypervisor"),
            ({"rdma_disabled": False, "hypervisor_active": None}, "RDMA is on without an active hypervisor"),
        ],
    )
    def test_each_breach(self, changes: dict[str, Any], problem: str) -> None:
        with pytest.raises(Breach, match=problem):
            check(signed(answer(**changes)))

    def test_a_hypervisor_makes_up_for_rdma(self) -> None:
        check(signed(answer(rdma_disabled=False, hypervisor_active=True)))

    def test_a_signature_over_another_time_is_a_strike(self) -> None:
        late = answer(signature=signing.sign(KEY, challenge_message(CHALLENGE.nonce, "2026-05-01T12:05:00Z")))
        with pytest.raises(Strike):
            check(late)

    def test_a_lie_in_the_status_is_a_strike_before_it_is_a_breach(self) -> None:
        lying = msgspec.structs.replace(signed(answer()), sip_enabled=False)
        with pytest.raises(Strike):
            check(lying)

    def test_a_strike_is_no_breach(self) -> None:
        assert not issubclass(Strike, Breach)
        assert not issubclass(Breach, Strike)


class TestWithoutASigningKey:
    def test_any_signature_shows_only_that_the_machine_is_alive(self) -> None:
        check(answer(signature=OPEN_MODE_SIGNATURE), signing_key="")

    def test_but_there_must_be_one(self) -> None:
        with pytest.raises(Strike, match="not signed"):
            check(answer(), signing_key="")

    def test_its_posture_counts_all_the_same(self) -> None:
        with pytest.raises(Breach):
            check(answer(signature=OPEN_MODE_SIGNATURE, sip_enabled=False), signing_key="")


class TestDevelopment:
    @pytest.mark.parametrize(
        "changes",
        [
            {"sip_enabled": False},
            {"sip_enabled": None, "secure_boot_enabled": None, "rdma_disabled": None},
            {"rdma_disabled": False},
        ],
    )
    def test_the_posture_is_taken_as_it_is(self, changes: dict[str, Any]) -> None:
        check(signed(answer(**changes)), development=True)

    @pytest.mark.parametrize(
        "given",
        [answer(), signed(answer(), OTHER_KEY), signed(answer(public_key="another")), signed(answer(nonce="x"))],
    )
    def test_keys_and_signatures_are_never_waived(self, given: AttestationResponse) -> None:
        with pytest.raises(Strike):
            check(given, development=True)
