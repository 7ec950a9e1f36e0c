from __future__ import annotations

import hashlib

from domain.machines import (
    MachineLinked,
    MachineRegistered,
    ProviderMachine,
    ProviderSessionClosed,
    ProviderSessionOpened,
    machine_id_of,
)
from tests.support.examples import record


def machine() -> ProviderMachine:
    made = ProviderMachine(ProviderMachine.id_of("machine"))
    record(
        made, MachineRegistered, machine_id="machine", provider_key="key", hardware={"memory_gb": 64}, models=("model",)
    )
    record(
        made,
        ProviderSessionOpened,
        machine_id="machine",
        session_id="one",
        provider_key="key",
        gateway_id="gateway",
    )
    return made


def test_a_machine_is_named_by_the_hash_of_its_key() -> None:
    assert machine_id_of(b"key") == hashlib.sha256(b"key").hexdigest()
    assert machine_id_of(b"key") != machine_id_of(b"yek")
    assert len(machine_id_of(b"")) == 64


def test_a_machine_remembers_its_description_its_account_and_its_open_sessions() -> None:
    made = machine()
    record(made, MachineLinked, machine_id="machine", account_id="ada")
    assert made.description == ({"memory_gb": 64}, ("model",))
    assert (made.machine_id, made.account_id, made.open_sessions) == ("machine", "ada", {"one"})


def test_closing_a_session_that_is_not_open_changes_nothing() -> None:
    made = machine()
    for session in ("two", "one", "one"):
        record(
            made,
            ProviderSessionClosed,
            machine_id="machine",
            session_id=session,
            requests_served=1,
            tokens_generated=1,
            reason="gone",
        )
    assert made.open_sessions == set()


def test_a_copy_is_not_reached_by_later_events() -> None:
    made = machine()
    twin = made.copy()
    record(
        made,
        ProviderSessionOpened,
        machine_id="machine",
        session_id="two",
        provider_key="key",
        gateway_id="gateway",
    )
    assert (twin.open_sessions, made.open_sessions) == ({"one"}, {"one", "two"})
