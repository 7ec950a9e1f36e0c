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


UPCASTS: Mapping[tuple[str, int], Upcast] = {
    ("ProviderMachine.MachineRegistered", 1): _machine_registered_2,
}
"""(topic, version) to the function that turns that version's payload into the next one's."""
