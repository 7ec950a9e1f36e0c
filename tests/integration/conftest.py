"""Defects that are known and open: their tests stay, are run, and are expected to fail until each is mended."""

from __future__ import annotations

import pytest

OPEN_DEFECTS = frozenset(
    {
        "test_nobody_is_refused_because_of_a_neighbour_that_was_never_written",
        "test_a_command_that_comes_in_while_the_writer_stops_is_answered",
        "test_a_writer_stops_though_a_command_came_in_behind_the_end_of_its_queue",
        "test_an_aggregate_that_cannot_be_read_fails_only_the_commands_that_need_it",
        "test_an_event_that_cannot_be_read_does_not_keep_a_writer_from_starting",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item, "originalname", item.name) in OPEN_DEFECTS:
            item.add_marker(pytest.mark.xfail(reason="a known defect that is open", strict=False))
