"""This machine as a coordinator sees it: what every connection of the process shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent import metrics
from agent.attestation import answer_challenge, build_attestation
from agent.auth_token import read_auth_token
from agent.engine import mlx
from agent.engine.engine import Engine
from agent.engine.job import Throughput
from agent.errors import ModelNotServed
from agent.identity import Identity
from agent.posture import Hardening, Posture, measure
from agent.version import agent_version
from domain import protocol
from domain.kinds import TEXT, ModelKind

BACKEND = "inprocess-mlx"

_SLOT_STATES = {"loading": "reloading", "ready": "running", "reloading": "reloading", "crashed": "crashed"}


@dataclass(frozen=True, slots=True)
class Slot:
    """One served model with its engine, which takes jobs of the model's kind; ``throughput`` is what its warm-up
    measured."""

    offered: protocol.OfferedModel
    engine: Engine[Any, Any]
    throughput: Throughput


@dataclass(slots=True)
class Machine:
    """``slots`` maps public model ids in the order of the command line; the first is the primary model. With
    ``private_only`` it works for its owner alone.

    ``requests_served`` and ``tokens_generated`` count since the process started; ``active_model`` is the id that was
    asked for last.
    """

    identity: Identity
    hardware: protocol.Hardware
    hardening: Hardening
    slots: Mapping[str, Slot]
    auth_token_path: Path
    private_only: bool = False
    requests_served: int = 0
    tokens_generated: int = 0
    active_model: str | None = None

    def slot(self, model_id: str, kind: ModelKind = TEXT) -> Slot:
        """The slot of exactly this id, with an engine of this kind.

        Raises:
            ModelNotServed: there is none.
        """
        slot = self.slots.get(model_id)
        if slot is None or slot.offered.kind != kind:
            raise ModelNotServed()
        return slot

    def count(self, usage: protocol.Usage) -> None:
        """Enter a finished request into the counters."""
        self.requests_served += 1
        self.tokens_generated += usage.completion_tokens

    def register(self) -> protocol.Register:
        """The first message of a connection; measures the posture, so it may block for a moment."""
        posture = measure()
        slots = self.slots.values()
        primary = next((slot for slot in slots if slot.offered.kind == TEXT), next(iter(slots)))
        return protocol.Register(
            hardware=self.hardware,
            models=tuple(slot.offered for slot in self.slots.values()),
            backend=BACKEND,
            version=agent_version(),
            public_key=self.identity.box_public,
            encrypted_response_chunks=True,
            attestation=build_attestation(self.identity, self.hardware, posture, datetime.now(UTC)),
            prefill_tps=primary.throughput.prefill_tps,
            decode_tps=primary.throughput.decode_tps,
            auth_token=read_auth_token(self.auth_token_path),
            private_only=self.private_only,
            privacy_capabilities=self._privacy(posture),
        )

    def heartbeat(self, status: str) -> protocol.Heartbeat:
        """The state right now; reads system metrics, so it may block for a moment."""
        active, peak, cache = mlx.memory_gb()
        return protocol.Heartbeat(
            status=status,
            stats=protocol.SessionStats(self.requests_served, self.tokens_generated),
            system_metrics=metrics.read(),
            active_model=self.active_model,
            warm_models=tuple(name for name, slot in self.slots.items() if slot.engine.state == "ready"),
            backend_capacity=protocol.BackendCapacity(
                slots=tuple(_wire_slot(name, slot) for name, slot in self.slots.items()),
                gpu_memory_active_gb=active,
                gpu_memory_peak_gb=peak,
                gpu_memory_cache_gb=cache,
                total_memory_gb=self.hardware.memory_gb,
            ),
        )

    def answer(self, challenge: protocol.AttestationChallenge) -> protocol.AttestationResponse:
        """The answer to a challenge, with a fresh posture; may block for a moment."""
        hashes = {name: slot.offered.weight_hash for name, slot in self.slots.items()}
        return answer_challenge(challenge, self.identity, measure(), hashes, hashes.get(self.active_model or "", ""))

    def _privacy(self, posture: Posture) -> protocol.PrivacyCapabilities:
        return protocol.PrivacyCapabilities(
            # True by construction: this process runs the model itself and opens no port that text could come in by.
            text_backend_inprocess=True,
            text_proxy_disabled=True,
            # The import path is the environment the owner installed, which nothing fixes or hashes.
            python_runtime_locked=False,
            # The process needs sockets for its connection, so they cannot be blocked in it.
            dangerous_modules_blocked=False,
            sip_enabled=posture.sip_enabled,
            anti_debug_enabled=self.hardening.anti_debug_enabled,
            core_dumps_disabled=self.hardening.core_dumps_disabled,
            env_scrubbed=self.hardening.env_scrubbed,
        )


def _wire_slot(name: str, slot: Slot) -> protocol.Slot:
    load = slot.engine.occupancy
    return protocol.Slot(
        model=name,
        state=_SLOT_STATES[slot.engine.state],
        num_running=load.running,
        num_waiting=load.waiting,
        active_tokens=load.active_tokens,
        max_tokens_potential=load.max_tokens_potential,
        max_concurrency=slot.engine.max_concurrent,
    )
