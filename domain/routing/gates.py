"""The gates: everything that can keep a machine from a request, each with a name, a sentence and what to do."""

from __future__ import annotations

from enum import StrEnum
from itertools import compress

from domain.kinds import TEXT
from domain.routing.demand import Demand
from domain.routing.facts import TRUST_RANK, Candidate, SlotState, Snapshot
from domain.routing.health import is_put_aside
from domain.routing.policy import Policy

GIB = 2.0**30
KV_TOKENS_MAX = 16 * 2**20


class Reason(StrEnum):
    """Why a machine cannot take a request: the closed list. ``says`` and ``fix`` are for its operator."""

    says: str
    fix: str

    def __new__(cls, code: str, says: str, fix: str) -> Reason:
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.says = says
        reason.fix = fix
        return reason

    NOT_CONNECTED = (
        "not_connected",
        "the machine is not connected",
        "start the agent, and look into its log for the cause when it does not connect",
    )
    MODEL_NOT_OFFERED = (
        "model_not_offered",
        "the machine does not offer this model",
        "give the agent a folder of exactly this name with --model",
    )
    MODEL_NOT_IN_CATALOG = (
        "model_not_in_catalog",
        "the network does not know this model, so nobody can ask for it",
        "serve a model that GET /v1/models lists, or ask the network's operator to add this one",
    )
    OTHER_KIND = (
        "other_kind",
        "the machine serves a model of this name that makes something else",
        "compare the folder with the network's catalog; a model's kind follows from what its folder holds",
    )
    UNTRUSTED = (
        "untrusted",
        "the machine broke a rule of the protocol",
        "the agent's log says which rule; restart the agent to register again",
    )
    DRAINING = (
        "draining",
        "the agent or its gateway is draining and takes no new work",
        "wait until it has stopped, then start the agent again",
    )
    TRUST_TOO_LOW = (
        "trust_too_low",
        "the trust level is below the minimum",
        "a key in software earns no trust; its owner alone may use it, with the header X-Darkbloom-Route",
    )
    PRIVATE_ONLY = (
        "private_only",
        "the machine serves its owner alone, who must have linked it",
        "ask with the header X-Darkbloom-Route; to serve everybody, start the agent without --private-only",
    )
    RUNTIME_UNVERIFIED = (
        "runtime_unverified",
        "the runtime does not match a known release",
        "update the agent",
    )
    NO_ENCRYPTION_KEY = (
        "no_encryption_key",
        "the agent sent no valid encryption key",
        "install the agent again; this one is broken or not this project's",
    )
    NOT_PRIVATE = (
        "not_private",
        "the agent does not run text in its own hardened process or does not encrypt its answers",
        "run the agent where it can protect its process; outside of development mode this is demanded",
    )
    CHALLENGE_STALE = (
        "challenge_stale",
        "no attestation challenge was passed recently",
        "right after connecting, wait a moment; later, check the machine's clock and load",
    )
    PUT_ASIDE = (
        "put_aside",
        "the machine failed several requests in a row and is put aside for a while",
        "look into the agent's log for the cause; a single request probes it when the time is up",
    )
    FULL = (
        "full",
        "every slot is taken",
        "nothing is wrong; raise --max-concurrent if the machine can take more at once",
    )
    ENGINE_FULL = (
        "engine_full",
        "the engine of this model works on as much as it takes at once",
        "nothing is wrong; images and speech are made one at a time",
    )
    SLOT_UNAVAILABLE = (
        "slot_unavailable",
        "the engine of this model crashed or is loading",
        "wait while it loads; when it stays so, look into the agent's log and restart it",
    )
    OVERHEATED = (
        "overheated",
        "the machine is critically hot",
        "let it cool, and give it air",
    )
    OUT_OF_MEMORY = (
        "out_of_memory",
        "the model and this request do not fit the free memory",
        "serve a smaller model, or stop what else uses memory",
    )
    NOT_ALLOWED = (
        "not_allowed",
        "the request names other machines",
        "nothing is wrong; it concerns one request",
    )
    NOT_THEIRS = (
        "not_theirs",
        "the request is restricted to the machines of another account",
        "nothing is wrong; it concerns one request",
    )
    EXCLUDED = (
        "excluded",
        "the machine already failed this request, or its gateway is out of reach",
        "look into the agent's log; it concerns one request",
    )


_GATES = (
    Reason.MODEL_NOT_OFFERED,
    Reason.OTHER_KIND,
    Reason.UNTRUSTED,
    Reason.DRAINING,
    Reason.TRUST_TOO_LOW,
    Reason.PRIVATE_ONLY,
    Reason.RUNTIME_UNVERIFIED,
    Reason.NO_ENCRYPTION_KEY,
    Reason.NOT_PRIVATE,
    Reason.CHALLENGE_STALE,
    Reason.PUT_ASIDE,
    Reason.FULL,
    Reason.ENGINE_FULL,
    Reason.SLOT_UNAVAILABLE,
    Reason.OVERHEATED,
    Reason.OUT_OF_MEMORY,
    Reason.NOT_ALLOWED,
    Reason.NOT_THEIRS,
    Reason.EXCLUDED,
)


def reasons_against(candidate: Candidate, demand: Demand, policy: Policy, *, now: float) -> tuple[Reason, ...]:
    """Every gate that keeps this machine from this request; empty when it is eligible.

    The network's floor of trust protects whoever does not know a machine, so it is not for its owner.
    """
    machine, requests_all = candidate.snapshot, candidate.load.requests_all
    asked, slot = demand.constraints, machine.slots.get(demand.model)
    is_own = machine.is_own(asked)
    floor = max(0 if is_own else TRUST_RANK[policy.minimum_trust], TRUST_RANK.get(asked.minimum_trust, 0))
    put_aside = is_put_aside(candidate.health, now=now, requests_all=requests_all, policy=policy)
    closed = (  # in the order of the gates
        demand.model not in machine.models,
        machine.kinds.get(demand.model, TEXT) != demand.kind,
        machine.untrusted,
        machine.draining,
        TRUST_RANK.get(machine.trust_level, -1) < floor,
        machine.private_only and not is_own,
        not (machine.runtime_verified or policy.development),
        not machine.provider_key,
        not machine.private,
        now - machine.challenge_passed_at > policy.challenge_age_seconds_max,
        put_aside and not demand.nobody_else,
        requests_all >= machine.capacity,
        slot is not None and 0 < slot.max_concurrency <= candidate.load.requests_model,
        slot is not None and slot.state in ("crashed", "reloading"),
        machine.thermal_state == "critical",
        not _fits(candidate, slot, demand, policy),
        bool(asked.allowed) and not _is_named(machine, asked.allowed),
        bool(asked.only_account) and machine.account_id != asked.only_account,
        machine.session_id in demand.excluded or machine.gateway_id in demand.excluded,
    )
    return tuple(compress(_GATES, closed)) if True in closed else ()


def _is_named(machine: Snapshot, allowed: tuple[str, ...]) -> bool:
    return machine.machine_id in allowed or (bool(machine.serial) and machine.serial in allowed)


def _fits(candidate: Candidate, slot: SlotState | None, demand: Demand, policy: Policy) -> bool:
    if demand.size_gb <= 0 or candidate.snapshot.total_memory_gb <= 0:
        return True
    needed = kv_gb(demand.prompt_tokens + demand.output_tokens, policy)
    return needed <= room_gb(candidate, slot, demand.model, demand.size_gb, swap=True)


def could_fit(candidate: Candidate, demand: Demand, policy: Policy) -> bool:
    """Whether the machine has the memory for a request now, or would have it with nothing else in it. Waiting does not
    help a request that could fit no machine."""
    needed = kv_gb(demand.prompt_tokens + demand.output_tokens, policy)
    slot = candidate.snapshot.slots.get(demand.model)
    return needed <= candidate.snapshot.total_memory_gb - demand.size_gb or _fits(candidate, slot, demand, policy)


def needs_swap(candidate: Candidate, demand: Demand, policy: Policy) -> bool:
    """Whether the machine must give up an idle model to make room for this one."""
    if demand.size_gb <= 0 or candidate.snapshot.total_memory_gb <= 0:
        return False
    slot = candidate.snapshot.slots.get(demand.model)
    needed = kv_gb(demand.prompt_tokens + demand.output_tokens, policy)
    return needed > room_gb(candidate, slot, demand.model, demand.size_gb, swap=False)


def kv_gb(tokens: int, policy: Policy) -> float:
    """The memory that a request's cache takes."""
    return min(tokens, KV_TOKENS_MAX) * policy.kv_bytes_per_token / GIB


def room_gb(candidate: Candidate, slot: SlotState | None, model: str, size_gb: float, *, swap: bool) -> float:
    """The memory that is left for a request's cache once the model is loaded; below zero when the weights do not fit.

    With ``swap``, an idle machine whose agent loads models on demand also counts the loaded models that it can give up.
    """
    machine = candidate.snapshot
    free = machine.total_memory_gb - machine.gpu_memory_active_gb
    if slot is not None and slot.loaded:
        return free
    if swap and slot is not None and slot.state == "idle_shutdown" and candidate.load.requests_all == 0:
        free += sum(
            machine.models.get(other, 0) / GIB
            for other, held in machine.slots.items()
            if other != model and held.loaded and held.num_running + held.num_waiting == 0
        )
    return free - size_gb
