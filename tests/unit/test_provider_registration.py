from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from adapters.crypto import signing
from adapters.crypto.sealing import NaclSealing
from api.providers.registration import (
    ATTESTATION_AGE_MAX,
    ATTESTATION_AHEAD_MAX,
    Identity,
    clamp,
    concurrency_of,
    hardware_facts,
    identify,
    is_private,
    slots_of,
)
from domain.machines import machine_id_of
from domain.protocol import (
    BackendCapacity,
    CpuCores,
    Hardware,
    Heartbeat,
    PrivacyCapabilities,
    Register,
    SessionStats,
    Slot,
    SystemMetrics,
)
from domain.routing import SlotState

NOW = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
K_PUBLIC = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="
OTHER_KEY = "WGmv9FBUlzLLqu1eXfmzCm2jHLDldCutWtShp2jxpns="
KEY = ec.derive_private_key(7, ec.SECP256R1())
VECTOR_KEY = "OVcU/T2NYNz0BXnkyBi7MJ3pXEKl8KhSQzNzEu7lL+lOcZTvxMxHupQlhHlFieaL2RoMAasrrPUZcTHZ7wq2vw=="
VECTOR_BLOB = (
    '{"authenticatedRootEnabled":true,"binaryHash":"' + "a" * 64 + '","chipName":"Apple M4 Max",'
    f'"encryptionPublicKey":"{K_PUBLIC}","hardwareModel":"Mac16,5",'
    f'"osVersion":"15.4.0","publicKey":"{VECTOR_KEY}","rdmaDisabled":true,"secureBootEnabled":true,'
    '"secureEnclaveAvailable":true,"serialNumber":"C02EXAMPLE01","sipEnabled":true,"timestamp":"2026-05-01T12:00:00Z"}'
)
VECTOR_SIGNATURE = "MEYCIQC+0Vz0KqD8/5UDvv3o2bqTxMICB+jCcC6U4dkYZAIVdAIhAIs2fChWEs/KAhj8jtauXQhUGRh8acxtDk+7AeshT4H4"


def register(attestation: str | bytes | None = None, **changes: Any) -> Register:
    values: dict[str, Any] = {
        "hardware": Hardware(),
        "models": (),
        "backend": "inprocess-mlx",
        "public_key": K_PUBLIC,
        "encrypted_response_chunks": True,
    }
    if attestation is not None:
        values["attestation"] = msgspec.Raw(attestation.encode() if isinstance(attestation, str) else attestation)
    return Register(**{**values, **changes})


def blob(**changes: Any) -> dict[str, Any]:
    values = {
        "encryptionPublicKey": K_PUBLIC,
        "publicKey": signing.public_key_text(KEY),
        "secureBootEnabled": True,
        "secureEnclaveAvailable": True,
        "sipEnabled": True,
        "timestamp": "2026-05-01T12:00:00Z",
    }
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def attestation(text: str | None = None, *, signature: str | None = None, **changes: Any) -> str:
    signed = text if text is not None else json.dumps(blob(**changes), separators=(",", ":"))
    proof = signature if signature is not None else signing.sign(KEY, signed.encode())
    return f'{{"attestation":{signed},"signature":"{proof}"}}'


def identity(sent: Register, now: datetime = NOW) -> Identity:
    return identify(sent, NaclSealing(), now)


class TestAttestation:
    def test_the_published_vector_identifies_its_machine(self) -> None:
        found = identity(register(f'{{"attestation":{VECTOR_BLOB},"signature":"{VECTOR_SIGNATURE}"}}'))
        assert found.machine_id == machine_id_of(base64.b64decode(VECTOR_KEY))
        assert (found.signing_key, found.trust_level, found.problem) == (VECTOR_KEY, "self_signed", "")
        assert found.secure_enclave

    def test_the_same_blob_with_escaped_slashes_is_another_text(self) -> None:
        escaped = VECTOR_BLOB.replace("/", "\\/")
        found = identity(register(f'{{"attestation":{escaped},"signature":"{VECTOR_SIGNATURE}"}}'))
        assert (found.trust_level, found.problem) == ("none", "the attestation's signature does not verify")

    def test_slashes_that_were_escaped_when_they_were_signed_verify(self) -> None:
        escaped = json.dumps(blob(), separators=(",", ":")).replace("/", "\\/")
        assert "\\/" in escaped
        assert identity(register(attestation(escaped))).trust_level == "self_signed"

    def test_unknown_members_are_signed_along(self) -> None:
        assert identity(register(attestation(metallibHash="x", chipFamily="M4"))).trust_level == "self_signed"

    def test_a_machine_keeps_its_identity_over_connections_and_key_forms(self) -> None:
        raw = base64.b64decode(signing.public_key_text(KEY))
        longer = base64.b64encode(b"\x04" + raw).decode()
        first = identity(register(attestation()))
        second = identity(register(attestation(publicKey=longer, encryptionPublicKey=OTHER_KEY), public_key=OTHER_KEY))
        assert first.machine_id == second.machine_id == machine_id_of(raw)

    @pytest.mark.parametrize(
        ("sent", "problem"),
        [
            (None, "no attestation was sent"),
            ("null", "the attestation cannot be read"),
            ("5", "the attestation cannot be read"),
            ("{}", "the attestation cannot be read"),
            ('{"attestation":{},"signature":"x"}', "the attestation cannot be read"),
            ('{"attestation":5,"signature":"x"}', "the attestation cannot be read"),
            (attestation(timestamp=None), "the attestation cannot be read"),
            (attestation(timestamp="yesterday"), "the attestation cannot be read"),
            (attestation(timestamp=1_777_000_000), "the attestation cannot be read"),
            (attestation(publicKey=None), "the attestation cannot be read"),
            (attestation(sipEnabled="yes"), "the attestation cannot be read"),
            (attestation(publicKey="AAAA"), "the attestation's signature does not verify"),
            (attestation(publicKey=K_PUBLIC), "the attestation's signature does not verify"),
            (attestation(publicKey=VECTOR_KEY), "the attestation's signature does not verify"),
            (attestation(signature=""), "the attestation's signature does not verify"),
            (attestation(signature="AAAA"), "the attestation's signature does not verify"),
            (attestation(signature=VECTOR_SIGNATURE), "the attestation's signature does not verify"),
            (attestation(encryptionPublicKey=OTHER_KEY), "the attestation names another encryption key"),
            (attestation(encryptionPublicKey=None), "the attestation names another encryption key"),
            (attestation(encryptionPublicKey=""), "the attestation names another encryption key"),
            (
                attestation(timestamp="2026-05-01T12:00:00"),
                "the attestation is too old or from the future; check the machine's clock",
            ),
        ],
    )
    def test_each_reason_why_an_attestation_does_not_hold(self, sent: str | None, problem: str) -> None:
        found = identity(register(sent))
        assert (found.problem, found.trust_level) == (problem, "none")
        assert (found.signing_key, found.secure_enclave) == ("", False)

    def test_one_changed_character_is_enough(self) -> None:
        tampered = attestation().replace('"sipEnabled":true', '"sipEnabled": true')
        assert identity(register(tampered)).problem == "the attestation's signature does not verify"

    @pytest.mark.parametrize(
        ("age", "holds"),
        [
            (timedelta(0), True),
            (ATTESTATION_AGE_MAX, True),
            (ATTESTATION_AGE_MAX + timedelta(seconds=1), False),
            (-ATTESTATION_AHEAD_MAX, True),
            (-ATTESTATION_AHEAD_MAX - timedelta(seconds=1), False),
        ],
    )
    def test_an_attestation_holds_for_a_day_and_two_minutes_ahead(self, age: timedelta, holds: bool) -> None:
        made_at = datetime(2026, 5, 1, 12, tzinfo=UTC)
        assert (timedelta(hours=24), timedelta(minutes=2)) == (ATTESTATION_AGE_MAX, ATTESTATION_AHEAD_MAX)
        assert (identity(register(attestation()), made_at + age).problem == "") is holds

    @pytest.mark.parametrize("timestamp", ["2026-05-01T12:00:00.123456Z", "2026-05-01T14:00:00+02:00"])
    def test_a_timestamp_may_be_fractional_or_carry_an_offset(self, timestamp: str) -> None:
        assert identity(register(attestation(timestamp=timestamp))).problem == ""

    @pytest.mark.parametrize("timestamp", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
    def test_a_timestamp_at_the_end_of_time_is_only_out_of_date(self, timestamp: str) -> None:
        assert "too old or from the future" in identity(register(attestation(timestamp=timestamp))).problem

    @pytest.mark.parametrize("missing", ["secureEnclaveAvailable", "sipEnabled", "secureBootEnabled"])
    @pytest.mark.parametrize("value", [False, None])
    def test_a_key_that_is_not_genuine_identifies_but_earns_no_trust(self, missing: str, value: bool | None) -> None:
        found = identity(register(attestation(**{missing: value}, keyStorage="software")))
        assert found.machine_id == machine_id_of(base64.b64decode(signing.public_key_text(KEY)))
        assert (found.trust_level, found.signing_key) == ("none", signing.public_key_text(KEY))
        assert "software" in found.problem

    def test_no_attestation_of_its_own_reaches_hardware_trust(self) -> None:
        assert identity(register(attestation(trustLevel="hardware"))).trust_level == "self_signed"

    def test_an_encryption_key_cannot_be_chosen_to_look_like_a_signing_key(self) -> None:
        text = base64.b64decode(signing.public_key_text(KEY)).decode("latin-1")
        assert identity(register(public_key=text)).machine_id != identity(register(attestation())).machine_id

    @given(st.binary(max_size=200))
    def test_whatever_stands_there_nothing_else_happens(self, raw: bytes) -> None:
        assert identity(register(raw)).trust_level == "none"


class TestPrivacy:
    HARDENED = PrivacyCapabilities(
        text_backend_inprocess=True,
        text_proxy_disabled=True,
        python_runtime_locked=True,
        dangerous_modules_blocked=True,
        anti_debug_enabled=True,
        core_dumps_disabled=True,
        env_scrubbed=True,
    )

    def test_a_hardened_process_that_seals_its_answers_is_private(self) -> None:
        assert is_private(register(privacy_capabilities=self.HARDENED), development=False)

    @pytest.mark.parametrize(
        "capability",
        [
            "text_backend_inprocess",
            "text_proxy_disabled",
            "python_runtime_locked",
            "dangerous_modules_blocked",
            "anti_debug_enabled",
            "core_dumps_disabled",
            "env_scrubbed",
        ],
    )
    def test_one_missing_capability_is_enough(self, capability: str) -> None:
        weaker = msgspec.structs.replace(self.HARDENED, **{capability: False})
        assert not is_private(register(privacy_capabilities=weaker), development=False)
        assert is_private(register(privacy_capabilities=weaker), development=True)

    def test_what_a_machine_says_of_sip_and_its_hypervisor_decides_nothing_here(self) -> None:
        boasting = msgspec.structs.replace(self.HARDENED, sip_enabled=True, hypervisor_active=True)
        assert is_private(register(privacy_capabilities=boasting), development=False)

    @pytest.mark.parametrize("changes", [{"encrypted_response_chunks": False}, {"backend": "vllm"}, {"backend": ""}])
    def test_development_never_waives_encryption_or_the_backend(self, changes: dict[str, Any]) -> None:
        assert not is_private(register(privacy_capabilities=self.HARDENED, **changes), development=True)


class TestClamps:
    @pytest.mark.parametrize(
        ("value", "high", "clamped"),
        [
            (5.0, 10.0, 5.0),
            (0.0, 10.0, 0.0),
            (10.0, 10.0, 10.0),
            (10.1, 10.0, 10.0),
            (-0.1, 10.0, 0.0),
            (float("nan"), 10.0, 0.0),
            (float("inf"), 10.0, 0.0),
            (float("-inf"), 10.0, 0.0),
        ],
    )
    def test_a_reported_number_stays_inside_of_its_range(self, value: float, high: float, clamped: float) -> None:
        assert clamp(value, high) == clamped

    @given(st.floats(), st.floats(0, 10**6))
    def test_a_clamped_number_is_always_one_to_reckon_with(self, value: float, high: float) -> None:
        assert 0.0 <= clamp(value, high) <= high

    def test_slots_are_clamped_and_kept_by_model(self) -> None:
        capacity = BackendCapacity(
            (
                Slot("a", "running", num_running=-1, num_waiting=-5, max_tokens_potential=-1),
                Slot("b", "idle_shutdown", num_running=3, num_waiting=2, max_tokens_potential=10**9),
            )
        )
        assert slots_of(capacity) == {
            "a": SlotState("running", 0, 0, 0),
            "b": SlotState("idle_shutdown", 3, 2, 1_000_000),
        }
        assert slots_of(None) == {}


class TestConcurrency:
    @staticmethod
    def heartbeat(*concurrency: int, memory_gb: float = 0.0) -> Heartbeat:
        slots = tuple(Slot(str(number), "running", max_concurrency=one) for number, one in enumerate(concurrency))
        return Heartbeat(
            "idle", SessionStats(), SystemMetrics(), backend_capacity=BackendCapacity(slots, total_memory_gb=memory_gb)
        )

    def test_before_the_first_report_a_machine_takes_four(self) -> None:
        assert concurrency_of(register(hardware=Hardware(memory_gb=512)), None) == 4
        silent = Heartbeat("idle", SessionStats(), SystemMetrics())
        assert concurrency_of(register(hardware=Hardware(memory_gb=512)), silent) == 4

    def test_the_engines_own_word_counts_first(self) -> None:
        assert concurrency_of(register(), self.heartbeat(8, 8)) == 16

    def test_memory_decides_where_the_engines_say_nothing(self) -> None:
        assert concurrency_of(register(hardware=Hardware(memory_gb=16)), self.heartbeat(memory_gb=64)) == 6
        assert concurrency_of(register(hardware=Hardware(memory_gb=16)), self.heartbeat(0)) == 2

    @pytest.mark.parametrize("concurrency", [(-5,), (-5, 10), (10**9,)])
    def test_nonsense_stays_between_1_and_64(self, concurrency: tuple[int, ...]) -> None:
        assert 1 <= concurrency_of(register(), self.heartbeat(*concurrency)) <= 64


class TestWhatTheLogKeeps:
    def test_the_hardware_is_kept_without_floats_and_without_a_serial_number(self) -> None:
        hardware = Hardware(
            machine_model="Mac16,5",
            chip_name="Apple M4 Max",
            chip_family="M4",
            chip_tier="Max",
            memory_gb=64.9,
            cpu_cores=CpuCores(16, 12, 4),
            gpu_cores=40,
            memory_bandwidth_gbs=546,
        )
        assert hardware_facts(register(attestation(serialNumber="C02EXAMPLE01"), hardware=hardware)) == {
            "machine_model": "Mac16,5",
            "chip_name": "Apple M4 Max",
            "chip_family": "M4",
            "chip_tier": "Max",
            "memory_gb": 64,
            "cpu_cores": 16,
            "gpu_cores": 40,
        }

    def test_texts_and_numbers_are_bounded(self) -> None:
        hardware = Hardware(
            machine_model="x" * 500,
            chip_name="x" * 500,
            chip_family="x" * 500,
            chip_tier="x" * 500,
            memory_gb=10**9,
            cpu_cores=CpuCores(-1),
            gpu_cores=-1,
        )
        facts = hardware_facts(register(hardware=hardware))
        assert max(len(str(value)) for value in facts.values()) <= 100
        assert (facts["memory_gb"], facts["cpu_cores"], facts["gpu_cores"]) == (1_024, 0, 0)

    @pytest.mark.parametrize("cores", [2**31, 2**63, 10**30])
    def test_core_counts_are_bounded_above_as_well(self, cores: int) -> None:
        facts = hardware_facts(register(hardware=Hardware(cpu_cores=CpuCores(cores), gpu_cores=cores)))
        assert all(0 <= int(facts[name]) < 2**31 for name in ("cpu_cores", "gpu_cores"))
