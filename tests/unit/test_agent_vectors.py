"""The published test vectors, against the modules that agent and coordinator share."""

from __future__ import annotations

import base64
import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.public import Box, PrivateKey

from adapters.crypto import signing
from adapters.crypto.box import SealedChannel, SealingError, parse_public_key, public_key_text
from domain import protocol

K_SECRET = PrivateKey(bytes(range(1, 33)))
S_SECRET = PrivateKey(bytes(range(33, 65)))
K_PUBLIC = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="
S_PUBLIC = "WGmv9FBUlzLLqu1eXfmzCm2jHLDldCutWtShp2jxpns="

REQUEST = b'{"model":"demo/model-4bit","messages":[{"role":"user","content":"ping"}],"stream":true,"max_tokens":16}'
REQUEST_SEALED = (
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXOMpK3C/3PxoncqfdNLWJ/2nXtjY+WBHww9AlZpItPtAabnFqTofNXJq4Z7rPMX4wSCtSQAZVHyrc5xGw"
    "InILmTwMDCkclG7z9wYwFskWxXTr69YTJOq9wmefQsiINuKTMQEX4uafoEmbHulxjBkVxcAwxne/W/0="
)
CHUNK = b'data: {"choices":[{"delta":{"content":"po"}}]}'
CHUNK_SEALED = (
    "ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7E0LXlTgtyVWr9Kx73lsefJpU25NX+dri4CypoQFXrDIYbMPkecEgJiqKBVjl2zJfiFT2AQ0sSFaihxjF"
    "En0="
)

SIGNING_KEY = ec.derive_private_key(
    int.from_bytes(hashlib.sha256(b"darkbloom spec example key").digest(), "big"), ec.SECP256R1()
)
PUBLIC_64 = "OVcU/T2NYNz0BXnkyBi7MJ3pXEKl8KhSQzNzEu7lL+lOcZTvxMxHupQlhHlFieaL2RoMAasrrPUZcTHZ7wq2vw=="
PUBLIC_65 = "BDlXFP09jWDc9AV55MgYuzCd6VxCpfCoUkMzcxLu5S/pTnGU78TMR7qUJYR5RYnmi9kaDAGrK6z1GXEx2e8Ktr8="

BLOB = (
    b'{"authenticatedRootEnabled":true,"binaryHash":"' + b"a" * 64 + b'","chipName":"Apple M4 Max",'
    b'"encryptionPublicKey":"B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=","hardwareModel":"Mac16,5",'
    b'"osVersion":"15.4.0","publicKey":"' + PUBLIC_64.encode() + b'","rdmaDisabled":true,"secureBootEnabled":true,'
    b'"secureEnclaveAvailable":true,"serialNumber":"C02EXAMPLE01","sipEnabled":true,'
    b'"timestamp":"2026-05-01T12:00:00Z"}'
)
BLOB_SIGNATURE = "MEYCIQC+0Vz0KqD8/5UDvv3o2bqTxMICB+jCcC6U4dkYZAIVdAIhAIs2fChWEs/KAhj8jtauXQhUGRh8acxtDk+7AeshT4H4"

NONCE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
TIMESTAMP = "2026-05-01T12:00:00Z"
CHALLENGE_SIGNATURE = "MEYCIQCVUz/iuSEwDMOsQojPTw3FA+KhbX5iH5c8FYm8GgtF+gIhAOZw4V+DHznqKJg8s86JXRV8WRQMaoU/mqJXNzDc4QEY"
STATUS_SIGNATURE = "MEQCIEywfv0OeyP0MgUtm6QPGNcRE3oxYua92n81WfDfr2mwAiAsTRclMA8fK5UqOi98VhY5ETBZLjYrYzgys8COwVVCXg=="


class TestBoxes:
    def test_public_keys_and_the_shared_key_are_the_published_ones(self) -> None:
        assert public_key_text(K_SECRET) == K_PUBLIC
        assert public_key_text(S_SECRET) == S_PUBLIC
        shared = "ec88f6e13b22bf9f04d480e0d8525c08ac7e2f48e212742bcbcafa104a74b08d"
        assert Box(K_SECRET, S_SECRET.public_key).shared_key().hex() == shared
        assert Box(S_SECRET, K_SECRET.public_key).shared_key().hex() == shared

    def test_the_agent_opens_the_published_request(self) -> None:
        assert SealedChannel(K_SECRET, parse_public_key(S_PUBLIC)).open(REQUEST_SEALED) == REQUEST

    def test_the_coordinator_opens_the_published_chunk(self) -> None:
        assert SealedChannel(S_SECRET, parse_public_key(K_PUBLIC)).open(CHUNK_SEALED) == CHUNK

    @pytest.mark.parametrize("length", range(42))
    def test_short_values_are_refused(self, length: int) -> None:
        channel = SealedChannel(K_SECRET, parse_public_key(S_PUBLIC))
        with pytest.raises(SealingError):
            channel.open(base64.b64encode(bytes(length)).decode())

    @pytest.mark.parametrize("position", [0, 23, 24, 39, 40, -1])
    def test_an_altered_byte_is_refused(self, position: int) -> None:
        raw = bytearray(base64.b64decode(REQUEST_SEALED))
        raw[position] ^= 1
        channel = SealedChannel(K_SECRET, parse_public_key(S_PUBLIC))
        with pytest.raises(SealingError):
            channel.open(base64.b64encode(raw).decode())

    def test_another_recipient_or_sender_is_refused(self) -> None:
        other = PrivateKey(bytes(range(65, 97)))
        with pytest.raises(SealingError):
            SealedChannel(other, parse_public_key(S_PUBLIC)).open(REQUEST_SEALED)
        with pytest.raises(SealingError):
            SealedChannel(K_SECRET, other.public_key).open(REQUEST_SEALED)

    def test_the_all_zero_key_is_refused(self) -> None:
        with pytest.raises(SealingError):
            parse_public_key(base64.b64encode(bytes(32)).decode())


class TestResponseHash:
    def test_hash_and_signature_of_the_example_answer(self) -> None:
        job_id = "7d1c2b1e-0000-4000-8000-000000000001"
        text = CHUNK + b'data: {"choices":[{"delta":{"content":"ng"}}]}'
        digest = hashlib.sha256(protocol.response_hash_input(job_id, 2) + text).hexdigest()
        assert digest == "16d4896cf382b5a2c552369c6e5d3d2be58f0595bee3fababc6798ba08196721"
        signature = "MEQCIC27KeJjqmIeT86woAxlEwqrf7X6gs1u0zVIqYy3O/a8AiBJ9wXOfUNxyW+AR3yeRRk8snYi3xSkDuH+CCGdwp+HBQ=="
        signing.verify(PUBLIC_64, signature, digest.encode())


class TestAttestation:
    def test_the_key_has_the_published_forms(self) -> None:
        secret = SIGNING_KEY.private_numbers().private_value
        assert f"{secret:064x}" == "035d2f0f25ad8f51503a6b0e31511ee90006aec563d0dfff3b0d88227d8000eb"
        assert signing.public_key_text(SIGNING_KEY) == PUBLIC_64
        assert signing.parse_public_key(PUBLIC_65) == signing.parse_public_key(PUBLIC_64)

    def test_the_signature_covers_the_exact_bytes_of_the_blob(self) -> None:
        assert hashlib.sha256(BLOB).hexdigest() == "cf2614fc8849a77e124e5a4af5b9b10d41fa8439bf38af04e62cf5f3aff2dbbb"
        signing.verify(PUBLIC_64, BLOB_SIGNATURE, BLOB)
        escaped = BLOB.replace(b"/", b"\\/")
        assert hashlib.sha256(escaped).hexdigest() == "c078d01da7e56fd9c9dc1774877ef7058c9f4e6996a3e93771433ec8ee974756"
        with pytest.raises(signing.SignatureRejected):
            signing.verify(PUBLIC_64, BLOB_SIGNATURE, escaped)

    def test_a_register_frame_carries_the_blob_unchanged(self) -> None:
        envelope = b'{"attestation":' + BLOB + b',"signature":"' + BLOB_SIGNATURE.encode() + b'"}'
        register = protocol.Register(protocol.Hardware(), (), "inprocess-mlx", attestation=msgspec.Raw(envelope))
        frame = protocol.encode(register)
        assert BLOB.decode() in frame
        received = protocol.decode_from_provider(frame)
        assert isinstance(received, protocol.Register)
        assert isinstance(received.attestation, msgspec.Raw)
        assert bytes(received.attestation) == envelope


class TestChallenge:
    def test_the_challenge_message_and_its_signature(self) -> None:
        message = protocol.challenge_message(NONCE, TIMESTAMP)
        assert hashlib.sha256(message).hexdigest() == "1f3df4f730320d673c63899c76c8f653cc9dfe2bec619c2bc10f29d851457b46"
        signing.verify(PUBLIC_64, CHALLENGE_SIGNATURE, message)

    def test_the_canonical_status_and_its_signature(self) -> None:
        response = protocol.AttestationResponse(
            nonce=NONCE,
            signature=CHALLENGE_SIGNATURE,
            public_key=K_PUBLIC,
            hypervisor_active=False,
            rdma_disabled=True,
            sip_enabled=True,
            secure_boot_enabled=True,
            binary_hash="a" * 64,
            runtime_hash="b" * 64,
            template_hashes={"chatml": "c" * 64},
            model_hashes={"demo/model-4bit": "d" * 64},
        )
        status = protocol.canonical_status(response, TIMESTAMP)
        assert hashlib.sha256(status).hexdigest() == "5383fc3128eefec3d98b0d20869059430d65678d8fe8ce546f85196e821cf8bb"
        signing.verify(PUBLIC_64, STATUS_SIGNATURE, status)

    def test_the_minimal_forms(self) -> None:
        bare = protocol.AttestationResponse(nonce="n", signature="s", public_key="k")
        assert protocol.canonical_status(bare, "t") == b'{"nonce":"n","timestamp":"t"}'
        off = msgspec.structs.replace(bare, sip_enabled=False)
        assert protocol.canonical_status(off, "t") == b'{"nonce":"n","sip_enabled":false,"timestamp":"t"}'
