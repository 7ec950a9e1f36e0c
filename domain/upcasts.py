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


UPCASTS: Mapping[tuple[str, int], Upcast] = {
    ("ProviderMachine.MachineRegistered", 1): _machine_registered_2,
    ("InferenceRequest.RequestAdmitted", 1): _request_admitted_2,
    ("InferenceRequest.JobDispatched", 1): _with_a_unit_to_price,
    ("InferenceRequest.JobCompleted", 1): _job_completed_2,
    ("InferenceRequest.UsageClaimClamped", 1): _usage_claim_clamped_2,
    ("InferenceRequest.RequestSettled", 1): _request_settled_2,
}
"""(topic, version) to the function that turns that version's payload into the next one's."""
