"""Brings stored events of older versions to the shape of today, one version at a time.

An upcast gets the payload of its version as plain JSON values and returns the next one's. It looks at nothing else:
what an old event did not say becomes the empty value that means "not recorded".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Upcast = Callable[[dict[str, Any]], dict[str, Any]]


def _machine_registered_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 2 names the key that requests to the machine are sealed to."""
    return {**payload, "provider_key": ""}


def _with_a_unit_to_price(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 2 of what holds a quote says what else than tokens it meters. Before, there was nothing else."""
    return {**payload, "quote": {**payload["quote"], "unit": "", "unit_price": 0}}


def _request_admitted_2(payload: dict[str, Any]) -> dict[str, Any]:
    return {**_with_a_unit_to_price(payload), "units_bound": 0}


def _job_completed_2(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "units": 0}


def _usage_claim_clamped_2(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "claimed_units": 0, "units_bound": 0}


def _request_settled_2(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "unit": "", "units": 0}


def _with_a_price_to_remember(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 3 of what holds a quote says what remembered prompt tokens cost. Before, they cost what others did."""
    quote = payload["quote"]
    return {**payload, "quote": {**quote, "cache_read_price": quote["input_price"]}}


def _with_nothing_remembered(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 3 of what counts tokens says how many of the prompt's were remembered, which was not recorded before."""
    return {**payload, "cached_tokens": 0}


def _usage_claim_clamped_3(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "claimed_cached_tokens": 0}


UPCASTS: Mapping[tuple[str, int], Upcast] = {
    ("ProviderMachine.MachineRegistered", 1): _machine_registered_2,
    ("InferenceRequest.RequestAdmitted", 1): _request_admitted_2,
    ("InferenceRequest.JobDispatched", 1): _with_a_unit_to_price,
    ("InferenceRequest.JobCompleted", 1): _job_completed_2,
    ("InferenceRequest.UsageClaimClamped", 1): _usage_claim_clamped_2,
    ("InferenceRequest.RequestSettled", 1): _request_settled_2,
    ("InferenceRequest.RequestAdmitted", 2): _with_a_price_to_remember,
    ("InferenceRequest.JobDispatched", 2): _with_a_price_to_remember,
    ("InferenceRequest.JobCompleted", 2): _with_nothing_remembered,
    ("InferenceRequest.UsageClaimClamped", 2): _usage_claim_clamped_3,
    ("InferenceRequest.RequestSettled", 2): _with_nothing_remembered,
}
"""(topic, version) to the function that turns that version's payload into the next one's."""
