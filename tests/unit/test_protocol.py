from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import protocol
from domain.protocol import (
    AttestationChallenge,
    AttestationResponse,
    BackendCapacity,
    Cancel,
    Hardware,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    MalformedMessage,
    OfferedModel,
    Register,
    RuntimeMismatch,
    RuntimeStatus,
    Sealed,
    SessionStats,
    Slot,
    SystemMetrics,
    TrustStatus,
    Usage,
    canonical_status,
    challenge_message,
    decode_from_coordinator,
    decode_from_provider,
    encode,
    response_hash_input,
)

JOB = "7d1c2b1e-0000-4000-8000-000000000001"
KEY = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="

REGISTER = {
    "type": "register",
    "hardware": {
        "machine_model": "Mac16,5",
        "chip_name": "Apple M4 Max",
        "chip_family": "M4",
        "chip_tier": "Max",
        "memory_gb": 64,
        "memory_available_gb": 60,
        "cpu_cores": {"total": 16, "performance": 12, "efficiency": 4},
        "gpu_cores": 40,
        "memory_bandwidth_gbs": 546,
    },
    "models": [
        {
            "id": "demo/model-4bit",
            "size_bytes": 4_200_000_000,
            "model_type": "qwen2",
            "quantization": "4bit",
            "weight_hash": "d" * 64,
        }
    ],
    "backend": "inprocess-mlx",
    "version": "0.3.11",
    "public_key": KEY,
    "encrypted_response_chunks": True,
    "decode_tps": 71.5,
    "prefill_tps": 640.0,
    "auth_token": "example-device-token",
    "runtime_hash": "b" * 64,
    "template_hashes": {"chatml": "c" * 64},
    "privacy_capabilities": {"text_backend_inprocess": True, "sip_enabled": True, "hypervisor_active": False},
}
HEARTBEAT = {
    "type": "heartbeat",
    "status": "serving",
    "active_model": "demo/model-4bit",
    "warm_models": ["demo/model-4bit"],
    "stats": {"requests_served": 41, "tokens_generated": 18250},
    "system_metrics": {"memory_pressure": 0.42, "cpu_usage": 0.18, "thermal_state": "nominal"},
    "backend_capacity": {
        "slots": [
            {
                "model": "demo/model-4bit",
                "state": "running",
                "num_running": 1,
                "num_waiting": 0,
                "active_tokens": 310,
                "max_tokens_potential": 1024,
            }
        ],
        "gpu_memory_active_gb": 6.1,
        "gpu_memory_peak_gb": 7.0,
        "gpu_memory_cache_gb": 0.4,
        "total_memory_gb": 64,
    },
}
COMPLETE = {
    "type": "inference_complete",
    "request_id": JOB,
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    "response_hash": "16d4896cf382b5a2c552369c6e5d3d2be58f0595bee3fababc6798ba08196721",
    "se_signature": "c2lnbmF0dXJl",
}

FROM_PROVIDER: list[protocol.FromProvider] = [
    Register(Hardware(), (), "inprocess-mlx"),
    Register(
        Hardware(chip_name="Apple M4 Max", memory_gb=64),
        (OfferedModel("demo/model-4bit", 1, "qwen2", "4bit", context_length=8_192),),
        "inprocess-mlx",
        public_key=KEY,
        encrypted_response_chunks=True,
        template_hashes={"chatml": "c" * 64},
    ),
    Heartbeat("idle", SessionStats(), SystemMetrics()),
    Heartbeat(
        "serving",
        SessionStats(1, 2),
        SystemMetrics(0.5, 0.25, "fair"),
        active_model="m",
        warm_models=("m", "n"),
        backend_capacity=BackendCapacity((Slot("m", "running", 1, max_concurrency=8),), 1.5, 2.0, 0.5, 64.0),
    ),
    InferenceAccepted(JOB),
    InferenceResponseChunk(JOB, Sealed(KEY, "c2VhbGVk")),
    InferenceResponseChunk(JOB, data="plaintext"),
    InferenceComplete(JOB, Usage(9, 2)),
    InferenceComplete(JOB, Usage(9, 2, cached_tokens=4, reasoning_tokens=1)),
    InferenceComplete(JOB, Usage(9, 2), response_hash="ab" * 32, se_signature="c2ln"),
    InferenceError(JOB, "model load failed", 503),
    AttestationResponse("nonce", "signature", KEY, sip_enabled=False, rdma_disabled=True),
]
FROM_COORDINATOR: list[protocol.FromCoordinator] = [
    InferenceRequest(JOB, Sealed(KEY, "c2VhbGVk")),
    InferenceRequest(JOB),
    Cancel(JOB),
    AttestationChallenge("nonce", "2026-05-01T12:00:00Z"),
    RuntimeStatus(verified=False, mismatches=(RuntimeMismatch("template:chatml", "cccc", "(missing)"),)),
    RuntimeStatus(verified=True),
    TrustStatus("none", "online", ""),
]


class TestRoundTrip:
    @pytest.mark.parametrize("message", FROM_PROVIDER, ids=lambda message: type(message).__name__)
    def test_the_coordinator_reads_what_a_provider_writes(self, message: protocol.FromProvider) -> None:
        assert decode_from_provider(encode(message)) == message
        assert decode_from_provider(encode(message).encode()) == message

    @pytest.mark.parametrize("message", FROM_COORDINATOR, ids=lambda message: type(message).__name__)
    def test_a_provider_reads_what_the_coordinator_writes(self, message: protocol.FromCoordinator) -> None:
        assert decode_from_coordinator(encode(message)) == message

    @pytest.mark.parametrize(
        ("frame", "kind"),
        [(REGISTER, Register), (HEARTBEAT, Heartbeat), (COMPLETE, InferenceComplete)],
        ids=["register", "heartbeat", "complete"],
    )
    def test_the_examples_of_the_specification_are_read(self, frame: dict[str, Any], kind: type) -> None:
        assert isinstance(decode_from_provider(json.dumps(frame)), kind)

    def test_an_example_is_read_member_by_member(self) -> None:
        register = decode_from_provider(json.dumps(REGISTER))
        assert isinstance(register, Register)
        assert (register.hardware.memory_gb, register.hardware.cpu_cores.performance) == (64, 12)
        assert (register.models[0].id, register.models[0].size_bytes) == ("demo/model-4bit", 4_200_000_000)
        assert (register.decode_tps, register.encrypted_response_chunks) == (71.5, True)
        assert register.privacy_capabilities.text_backend_inprocess
        assert not register.privacy_capabilities.env_scrubbed

    def test_no_message_goes_both_ways(self) -> None:
        for message in FROM_PROVIDER:
            with pytest.raises(MalformedMessage):
                decode_from_coordinator(encode(message))
        for message in FROM_COORDINATOR:
            with pytest.raises(MalformedMessage):
                decode_from_provider(encode(message))


class TestPresence:
    def test_optional_members_are_omitted_instead_of_empty(self) -> None:
        assert json.loads(encode(FROM_PROVIDER[0])).keys() == {"type", "hardware", "models", "backend"}
        assert json.loads(encode(FROM_PROVIDER[2])).keys() == {"type", "status", "stats", "system_metrics"}
        assert json.loads(encode(InferenceComplete(JOB, Usage(9, 2)))).keys() == {"type", "request_id", "usage"}
        assert json.loads(encode(InferenceComplete(JOB, Usage(9, 0))))["usage"] == {
            "prompt_tokens": 9,
            "completion_tokens": 0,
        }
        assert json.loads(encode(InferenceRequest(JOB))).keys() == {"type", "request_id"}
        assert json.loads(encode(RuntimeStatus(verified=True))) == {"type": "runtime_status", "verified": True}

    def test_nothing_is_ever_written_as_null(self) -> None:
        for message in [*FROM_PROVIDER, *FROM_COORDINATOR]:
            assert "null" not in encode(message)

    def test_a_false_posture_is_written_because_absence_means_not_measured(self) -> None:
        response = AttestationResponse("n", "s", KEY, sip_enabled=False)
        written = json.loads(encode(response))
        assert written["sip_enabled"] is False
        assert "rdma_disabled" not in written

    def test_a_null_active_model_means_none(self) -> None:
        heartbeat = decode_from_provider(json.dumps({**HEARTBEAT, "active_model": None}))
        assert isinstance(heartbeat, Heartbeat)
        assert heartbeat.active_model is None

    @pytest.mark.parametrize("frame", [REGISTER, HEARTBEAT, COMPLETE], ids=lambda frame: frame["type"])
    def test_unknown_members_are_ignored_at_every_level(self, frame: dict[str, Any]) -> None:
        def with_strangers(value: Any) -> Any:
            if isinstance(value, dict) and value is not frame.get("template_hashes"):
                return {**{key: with_strangers(inner) for key, inner in value.items()}, "stranger": [1, {"x": None}]}
            return [with_strangers(inner) for inner in value] if isinstance(value, list) else value

        assert decode_from_provider(json.dumps(with_strangers(frame))) == decode_from_provider(json.dumps(frame))


class TestAttestationBytes:
    @pytest.mark.parametrize(
        "attestation",
        [
            r'{"attestation":{"publicKey":"a\/b+c=="},"signature":"s"}',
            r'{"attestation":{"publicKey":"a/b+c=="},"signature":"s"}',
            '{ "signature" : "s" ,\n "attestation" : { "b" : 1.0e2 , "a" : "\\u00e9" } }',
            '{"attestation":{"a":"é","a":"twice"},"signature":""}',
        ],
        ids=["escaped slashes", "plain slashes", "spaces and escapes", "twice the same member"],
    )
    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_the_attestation_keeps_its_exact_bytes(self, attestation: str, as_bytes: bool) -> None:
        frame = json.dumps(REGISTER)[:-1] + ', "attestation" : ' + attestation + "}"
        register = decode_from_provider(frame.encode() if as_bytes else frame)
        assert isinstance(register, Register)
        assert isinstance(register.attestation, msgspec.Raw)
        assert bytes(register.attestation) == attestation.encode()

    def test_a_prebuilt_attestation_goes_out_unchanged(self) -> None:
        attestation = rb'{ "attestation": {"publicKey":"a\/b"}, "signature": "s" }'
        frame = encode(Register(Hardware(), (), "inprocess-mlx", attestation=msgspec.Raw(attestation)))
        assert attestation.decode() in frame

    def test_no_attestation_is_not_the_same_as_an_empty_one(self) -> None:
        register = decode_from_provider(json.dumps(REGISTER))
        assert isinstance(register, Register)
        assert register.attestation is msgspec.UNSET


SECRET = "the-secret-of-a-prompt"


class TestMalformedFrames:
    @pytest.mark.parametrize(
        "frame",
        [
            "",
            "{",
            "null",
            "[]",
            "5",
            f'"{SECRET}"',
            f"{{{SECRET}",
            f'{{"type":"{SECRET}"}}',
            f'{{"type":5,"x":"{SECRET}"}}',
            f'{{"kind":"{SECRET}"}}',
            f'{{"type":"inference_error","request_id":"{SECRET}","error":"{SECRET}","status_code":"{SECRET}"}}',
            f'{{"type":"inference_error","request_id":["{SECRET}"],"error":"x","status_code":1}}',
            f'{{"type":"inference_accepted","{SECRET}":"{SECRET}"}}',
            f'{{"type":"inference_complete","request_id":"x","usage":"{SECRET}"}}',
            f'{{"type":"heartbeat","status":{{"{SECRET}":"{SECRET}"}}}}',
            json.dumps({**REGISTER, "template_hashes": {SECRET: 5}}),
            json.dumps({**REGISTER, "models": [{SECRET: SECRET}]}),
            json.dumps({**REGISTER, "version": SECRET * 100}),
            json.dumps({**REGISTER, "hardware": {"memory_gb": SECRET}}),
            json.dumps({"type": "inference_error", "request_id": "x", "error": SECRET * 1_000, "status_code": 500}),
            json.dumps({"type": "inference_response_chunk", "request_id": "x", "encrypted_data": [SECRET]}),
        ],
    )
    def test_a_refusal_names_the_place_and_never_the_value(self, frame: str) -> None:
        with pytest.raises(MalformedMessage) as refusal:
            decode_from_provider(frame)
        assert SECRET not in str(refusal.value)
        assert refusal.value.__cause__ is None
        assert str(refusal.value)

    def test_a_refusal_says_where(self) -> None:
        frame = json.dumps({**COMPLETE, "usage": {"prompt_tokens": "9", "completion_tokens": 2}})
        with pytest.raises(MalformedMessage, match=r"usage\.prompt_tokens"):
            decode_from_provider(frame)

    @pytest.mark.parametrize("frame", [b"\xff\xfe", b'{"type":"cancel","request_id":"\xff"}', '{"type":"\ud800"}'])
    def test_bytes_that_are_no_text_are_refused(self, frame: str | bytes) -> None:
        with pytest.raises(MalformedMessage):
            decode_from_provider(frame)
        with pytest.raises(MalformedMessage):
            decode_from_coordinator(frame)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        )
    )
    def test_no_json_value_raises_anything_else(self, value: Any) -> None:
        for frame in (json.dumps(value), json.dumps({"type": "heartbeat", "status": value, "stats": value})):
            with pytest.raises(MalformedMessage):
                decode_from_provider(frame)

    @given(st.binary(max_size=200))
    def test_no_bytes_raise_anything_else(self, frame: bytes) -> None:
        with pytest.raises(MalformedMessage):
            decode_from_provider(frame)


class TestLimits:
    @pytest.mark.parametrize(
        ("member", "length"), [("version", 512), ("auth_token", 512), ("backend", 512), ("public_key", 64)]
    )
    def test_a_text_is_read_up_to_its_bound(self, member: str, length: int) -> None:
        decode_from_provider(json.dumps({**REGISTER, member: "x" * length}))
        with pytest.raises(MalformedMessage):
            decode_from_provider(json.dumps({**REGISTER, member: "x" * (length + 1)}))

    @pytest.mark.parametrize(("length", "allowed"), [(0, False), (1, True), (256, True), (257, False)])
    def test_a_model_id_has_one_to_256_characters(self, length: int, allowed: bool) -> None:
        model = {**REGISTER["models"][0], "id": "m" * length}  # type: ignore[index]
        frame = json.dumps({**REGISTER, "models": [model]})
        if allowed:
            decode_from_provider(frame)
        else:
            with pytest.raises(MalformedMessage):
                decode_from_provider(frame)

    @pytest.mark.parametrize("count", [-1, 2**53 + 1, 1.5, "9", None, True])
    def test_a_token_count_is_a_whole_number_that_json_can_carry(self, count: object) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 4}
        for member in usage:
            with pytest.raises(MalformedMessage):
                decode_from_provider(json.dumps({**COMPLETE, "usage": usage | {member: count}}))

    def test_the_largest_count_is_read(self) -> None:
        frame = {**COMPLETE, "usage": {"prompt_tokens": 2**53, "completion_tokens": 0}}
        complete = decode_from_provider(json.dumps(frame))
        assert isinstance(complete, InferenceComplete)
        assert complete.usage == Usage(2**53, 0)

    def test_an_error_text_is_bounded(self) -> None:
        decode_from_provider(encode(InferenceError(JOB, "x" * 4_096, 500)))
        with pytest.raises(MalformedMessage):
            decode_from_provider(encode(InferenceError(JOB, "x" * 4_097, 500)))

    def test_the_sizes_of_frames_are_those_of_the_specification(self) -> None:
        assert protocol.COORDINATOR_INBOUND_BYTES_MAX == 10 * 1_048_576
        assert protocol.PROVIDER_INBOUND_BYTES_MAX == 48 * 1_048_576


class TestSignedBytes:
    def test_the_challenge_is_the_nonce_as_text_and_the_timestamp(self) -> None:
        assert challenge_message("bm9uY2U=", "2026-05-01T12:00:00Z") == b"bm9uY2U=2026-05-01T12:00:00Z"

    def test_the_response_hash_begins_with_job_and_count(self) -> None:
        assert response_hash_input(JOB, 2) == f"{JOB}:2:".encode()

    def test_absence_and_false_are_different_in_the_signed_status(self) -> None:
        silent = AttestationResponse("n", "s", KEY)
        assert canonical_status(silent, "t") == b'{"nonce":"n","timestamp":"t"}'
        for name in ("hypervisor_active", "rdma_disabled", "sip_enabled", "secure_boot_enabled"):
            for value in (False, True):
                said = msgspec.structs.replace(silent, **{name: value})
                assert json.loads(canonical_status(said, "t"))[name] is value

    def test_signatures_and_keys_are_no_part_of_the_status(self) -> None:
        one = AttestationResponse("n", "s", KEY, sip_enabled=True)
        other = AttestationResponse("n", "another", "another", status_signature="x", sip_enabled=True)
        assert canonical_status(one, "t") == canonical_status(other, "t")

    def test_the_timestamp_is_the_challenges(self) -> None:
        response = AttestationResponse("n", "s", KEY)
        assert canonical_status(response, "then") != canonical_status(response, "now")

    @given(
        st.dictionaries(
            st.text(st.characters(codec="utf-8", exclude_characters="<>&\u2028\u2029\x7f"), max_size=8),
            st.text(st.characters(codec="utf-8", exclude_characters="<>&\u2028\u2029\x7f"), max_size=8),
            max_size=5,
        ),
        st.booleans() | st.none(),
    )
    def test_the_canonical_form_is_sorted_compact_json(self, hashes: dict[str, str], sip: bool | None) -> None:
        response = AttestationResponse("n", "s", KEY, sip_enabled=sip, binary_hash="b", model_hashes=hashes)
        members: dict[str, Any] = {"nonce": "n", "timestamp": "t", "binary_hash": "b"}
        if sip is not None:
            members["sip_enabled"] = sip
        if hashes:
            members["model_hashes"] = hashes
        expected = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert canonical_status(response, "t") == expected
