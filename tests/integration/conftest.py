"""Defects that are known and open: their tests stay, are run, and are expected to fail until each is mended."""

from __future__ import annotations

import pytest

OPEN_DEFECTS = frozenset(
    {
        "test_what_is_sent_after_the_end_is_refused",
        "test_a_claim_and_a_release_of_one_attempt_at_the_same_time_both_succeed",
        "test_requests_that_park_at_the_same_time_do_not_fill_a_queue_beyond_its_depth",
        "test_nobody_is_refused_because_of_a_neighbour_that_was_never_written",
        "test_a_command_that_comes_in_while_the_writer_stops_is_answered",
        "test_a_writer_stops_though_a_command_came_in_behind_the_end_of_its_queue",
        "test_an_aggregate_that_cannot_be_read_fails_only_the_commands_that_need_it",
        "test_an_event_that_cannot_be_read_does_not_keep_a_writer_from_starting",
        "test_a_malformed_address_is_refused_without_repeating_its_password",
        "test_a_message_that_comes_twice_finds_the_slot_of_its_first_run",
        "test_a_ledger_that_fails_once_does_not_make_a_request_wait_for_its_own_slot",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item, "originalname", item.name) in OPEN_DEFECTS:
            item.add_marker(pytest.mark.xfail(reason="a known defect that is open", strict=False))
