from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from adapters.crypto import signing
from adapters.crypto.sealing import NaclSealing
from adapters.crypto.signing import SignatureRejected, parse_public_key, public_key_text, sign, verify
from domain.protocol import AttestationResponse, canonical_status, challenge_message

KEY = ec.derive_private_key(
    int.from_bytes(hashlib.sha256(b"darkbloom spec example key").digest(), "big"), ec.SECP256R1()
)
PUBLIC_64 = "OVcU/T2NYNz0BXnkyBi7MJ3pXEKl8KhSQzNzEu7lL+lOcZTvxMxHupQlhHlFieaL2RoMAasrrPUZcTHZ7wq2vw=="
PUBLIC_65 = "BDlXFP09jWDc9AV55MgYuzCd6VxCpfCoUkMzcxLu5S/pTnGU78TMR7qUJYR5RYnmi9kaDAGrK6z1GXEx2e8Ktr8="
BLOB = (
    '{"authenticatedRootEnabled":true,"binaryHash":"' + "a" * 64 + '","chipName":"Apple M4 Max",'
    '"encryptionPublicKey":"B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=","hardwareModel":"Mac16,5",'
    f'"osVersion":"15.4.0","publicKey":"{PUBLIC_64}","rdmaDisabled":true,"secureBootEnabled":true,'
    '"secureEnclaveAvailable":true,"serialNumber":"C02EXAMPLE01","sipEnabled":true,"timestamp":"2026-05-01T12:00:00Z"}'
).encode()
BLOB_SIGNATURE = "MEYCIQC+0Vz0KqD8/5UDvv3o2bqTxMICB+jCcC6U4dkYZAIVdAIhAIs2fChWEs/KAhj8jtauXQhUGRh8acxtDk+7AeshT4H4"
NONCE, TIMESTAMP = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "2026-05-01T12:00:00Z"
CHALLENGE_SIGNATURE = "MEYCIQCVUz/iuSEwDMOsQojPTw3FA+KhbX5iH5c8FYm8GgtF+gIhAOZw4V+DHznqKJg8s86JXRV8WRQMaoU/mqJXNzDc4QEY"
STATUS_SIGNATURE = "MEQCIEywfv0OeyP0MgUtm6QPGNcRE3oxYua92n81WfDfr2mwAiAsTRclMA8fK5UqOi98VhY5ETBZLjYrYzgys8COwVVCXg=="
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class TestTheVectors:
    def test_the_signature_covers_the_blobs_exact_bytes(self) -> None:
        assert hashlib.sha256(BLOB).hexdigest() == "cf2614fc8849a77e124e5a4af5b9b10d41fa8439bf38af04e62cf5f3aff2dbbb"
        verify(PUBLIC_64, BLOB_SIGNATURE, BLOB)
        verify(PUBLIC_65, BLOB_SIGNATURE, BLOB)

    def test_the_same_json_with_escaped_slashes_does_not_verify(self) -> None:
        escaped = BLOB.replace(b"/", b"\\/")
        assert hashlib.sha256(escaped).hexdigest() == "c078d01da7e56fd9c9dc1774877ef7058c9f4e6996a3e93771433ec8ee974756"
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, BLOB_SIGNATURE, escaped)

    def test_the_answer_to_the_challenge_verifies(self) -> None:
        verify(PUBLIC_64, CHALLENGE_SIGNATURE, challenge_message(NONCE, TIMESTAMP))

    def test_the_status_verifies_as_it_is_rebuilt_from_the_answer(self) -> None:
        answer = AttestationResponse(
            nonce=NONCE,
            signature=CHALLENGE_SIGNATURE,
            public_key="B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=",
            status_signature=STATUS_SIGNATURE,
            hypervisor_active=False,
            rdma_disabled=True,
            sip_enabled=True,
            secure_boot_enabled=True,
            binary_hash="a" * 64,
            runtime_hash="b" * 64,
            template_hashes={"chatml": "c" * 64},
            model_hashes={"demo/model-4bit": "d" * 64},
        )
        verify(PUBLIC_64, STATUS_SIGNATURE, canonical_status(answer, TIMESTAMP))

    def test_the_hash_of_an_answer_is_signed_as_its_hex_text(self) -> None:
        answer = b'data: {"choices":[{"delta":{"content":"po"}}]}data: {"choices":[{"delta":{"content":"ng"}}]}'
        digest = hashlib.sha256(b"7d1c2b1e-0000-4000-8000-000000000001:2:" + answer).hexdigest()
        signature = "MEQCIC27KeJjqmIeT86woAxlEwqrf7X6gs1u0zVIqYy3O/a8AiBJ9wXOfUNxyW+AR3yeRRk8snYi3xSkDuH+CCGdwp+HBQ=="
        verify(PUBLIC_64, signature, digest.encode())


class TestSignatures:
    @given(st.binary(max_size=300))
    def test_what_was_signed_verifies_and_nothing_else(self, message: bytes) -> None:
        signature = sign(KEY, message)
        verify(public_key_text(KEY), signature, message)
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, signature, message + b"\0")
        with pytest.raises(SignatureRejected):
            verify(public_key_text(ec.derive_private_key(7, ec.SECP256R1())), signature, message)

    def test_a_high_s_is_accepted(self) -> None:
        r, s = decode_dss_signature(base64.b64decode(sign(KEY, b"message")))
        for form in (s, ORDER - s):
            verify(PUBLIC_64, text(encode_dss_signature(r, form)), b"message")

    @pytest.mark.parametrize("rest", [b"\0", b"rest", b"\x30\x00"])
    def test_bytes_after_the_sequence_are_refused(self, rest: bytes) -> None:
        raw = base64.b64decode(BLOB_SIGNATURE)
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(raw + rest), BLOB)

    def test_a_length_in_the_long_form_is_refused(self) -> None:
        raw = base64.b64decode(STATUS_SIGNATURE)
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(b"\x30\x81" + raw[1:]), b"")
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(b"\x30\x80" + raw[2:] + b"\0\0"), b"")

    def test_a_padded_integer_is_refused(self) -> None:
        signature = sign(KEY, b"message")
        r, s = decode_dss_signature(base64.b64decode(signature))
        padded = b"".join(b"\x02" + bytes([34]) + b"\0" + number.to_bytes(33, "big") for number in (r, s))
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(b"\x30" + bytes([len(padded)]) + padded), b"message")

    def test_the_raw_form_of_r_and_s_is_refused(self) -> None:
        r, s = decode_dss_signature(base64.b64decode(sign(KEY, b"message")))
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(r.to_bytes(32, "big") + s.to_bytes(32, "big")), b"message")

    @pytest.mark.parametrize(
        "numbers", [(0, 0), (0, 1), (1, 0), (1, 1), (ORDER, ORDER), (ORDER, 1), (2**300, 1), (1, 2**300)]
    )
    def test_numbers_that_no_signature_has_are_refused(self, numbers: tuple[int, int]) -> None:
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(encode_dss_signature(*numbers)), b"message")

    @pytest.mark.parametrize(
        "raw",
        [
            b"\x30\x06\x02\x01\xff\x02\x01\x01",
            b"\x30\x06\x02\x01\x01\x02\x01\x80",
            b"\x30\x04\x02\x00\x02\x00",
            b"\x31\x06\x02\x01\x01\x02\x01\x01",
        ],
        ids=["negative r", "negative s", "empty integers", "a set"],
    )
    def test_der_that_holds_no_signature_is_refused(self, raw: bytes) -> None:
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(raw), b"message")

    @given(st.binary(max_size=80))
    def test_any_other_bytes_are_refused_and_nothing_else_happens(self, raw: bytes) -> None:
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, text(raw), b"message")

    @given(st.text(max_size=100), st.text(max_size=100))
    def test_any_other_text_is_refused_and_nothing_else_happens(self, key: str, signature: str) -> None:
        with pytest.raises(SignatureRejected):
            verify(key, signature, b"message")

    @pytest.mark.parametrize(
        "signature",
        ["", "unsigned", BLOB_SIGNATURE + "\n", BLOB_SIGNATURE[:-4], BLOB_SIGNATURE.replace("+", "-"), "é"],
    )
    def test_a_signature_in_another_form_is_refused(self, signature: str) -> None:
        with pytest.raises(SignatureRejected):
            verify(PUBLIC_64, signature, BLOB)


class TestPublicKeys:
    def test_both_forms_are_the_same_key(self) -> None:
        assert public_key_text(KEY) == PUBLIC_64
        assert parse_public_key(PUBLIC_64) == parse_public_key(PUBLIC_65)

    def test_both_forms_identify_the_same_machine(self) -> None:
        raw = NaclSealing().raw_key(PUBLIC_64)
        assert raw == NaclSealing().raw_key(PUBLIC_65) == base64.b64decode(PUBLIC_64)
        assert len(raw) == 64

    @pytest.mark.parametrize("length", [0, 1, 32, 33, 63, 66, 128])
    def test_another_length_is_refused(self, length: int) -> None:
        with pytest.raises(SignatureRejected):
            parse_public_key(text((base64.b64decode(PUBLIC_64) * 2)[:length]))

    @pytest.mark.parametrize("first", [0, 2, 3, 5, 255])
    def test_65_bytes_begin_with_a_four(self, first: int) -> None:
        with pytest.raises(SignatureRejected):
            parse_public_key(text(bytes([first]) + base64.b64decode(PUBLIC_64)))

    def test_a_compressed_point_is_refused(self) -> None:
        compressed = KEY.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        with pytest.raises(SignatureRejected):
            parse_public_key(text(compressed))

    @pytest.mark.parametrize("raw", [bytes(64), b"\xff" * 64, b"\x01" * 64])
    def test_a_point_beside_the_curve_is_refused(self, raw: bytes) -> None:
        with pytest.raises(SignatureRejected):
            parse_public_key(text(raw))

    def test_the_gateways_port_refuses_with_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="public key"):
            NaclSealing().raw_key("AAAA")
        with pytest.raises(ValueError, match="does not verify"):
            NaclSealing().verify(PUBLIC_64, BLOB_SIGNATURE, b"another message")

    def test_the_curve_is_p_256(self) -> None:
        assert isinstance(parse_public_key(PUBLIC_64).curve, ec.SECP256R1)
        assert issubclass(signing.SignatureRejected, ValueError)
