"""Exports, checked line by line: whatever was changed is found, and its position is named."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.transparency import audit, export
from domain.transparency.audit import EarlierRejected, SplitView, Verdict
from domain.transparency.leaf import LoggedEvent
from tests.support.transparency import checkpoint_of, event, exported, log_of

SIZE = 60
LOG = log_of(SIZE)
EXPORT = exported(LOG)
HASHES = [export.hash_of(each) for each in LOG]
positions = st.integers(1, SIZE)


def check(lines: Sequence[bytes], *sizes: int, earlier: Sequence[bytes] = ()) -> Verdict:
    """The verdict on an export, with honest checkpoints of some sizes."""
    return audit.verify(lines, [checkpoint_of(LOG[:size]) for size in sizes or (SIZE,)], earlier=earlier)


def rehashed(events: Sequence[LoggedEvent]) -> list[bytes]:
    """An export by a careful forger: positions, hashes and the last line all fit."""
    return exported([each._replace(position=number) for number, each in enumerate(events, 1)])


# --- what is good ----------------------------------------------------------------------------------------------------


def test_an_export_that_nobody_changed_is_good() -> None:
    verdict = check(EXPORT)

    assert verdict == Verdict(ok=True, events=SIZE, covered=SIZE, reason="every event is covered")


def test_events_after_the_last_checkpoint_are_said_to_be_covered_by_none() -> None:
    verdict = check(EXPORT, 10, 50)

    assert (verdict.ok, verdict.events, verdict.covered) == (True, SIZE, 50)
    assert "the 10 events after the last checkpoint" in verdict.reason


def test_an_export_without_events_is_good_beside_a_checkpoint_of_nothing() -> None:
    assert audit.verify(exported([]), [checkpoint_of([])]).ok
    assert audit.verify(exported([]), [checkpoint_of([])]).covered == 0


def test_the_hashes_of_a_good_export_can_be_kept_and_serve_as_an_earlier_copy() -> None:
    kept: list[bytes] = []
    audit.verify(EXPORT, [checkpoint_of(LOG)], on_hash=kept.append)

    file = [audit.HASHES_HEADER, *(hashed.hex().encode() + b"\n" for hashed in kept)]

    assert list(audit.hashes_of_copy(file)) == HASHES
    assert list(audit.hashes_of_copy(EXPORT)) == HASHES


# --- what was changed ------------------------------------------------------------------------------------------------


@given(st.data())
def test_one_flipped_bit_anywhere_is_found_and_named(data: st.DataObject) -> None:
    whole = b"".join(EXPORT)
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]

    verdict = check(split(changed))

    line = whole.count(b"\n", 0, at) + 1
    assert not verdict.ok
    if line <= SIZE:
        assert verdict.first_bad_position == line
    else:
        assert verdict.first_bad_position in (None, SIZE + 1)


@given(positions)
def test_a_removed_event_is_named(position: int) -> None:
    verdict = check([*EXPORT[: position - 1], *EXPORT[position:]])

    assert (verdict.ok, verdict.first_bad_position) == (False, position)


@given(positions, positions)
def test_an_inserted_event_is_named(position: int, copied: int) -> None:
    verdict = check([*EXPORT[:position], EXPORT[copied - 1], *EXPORT[position:]])

    bad = position + 2 if copied == position + 1 else position + 1  # of two equal lines, the second is the inserted one
    assert (verdict.ok, verdict.first_bad_position) == (False, bad)


@given(positions, positions)
def test_the_first_of_two_events_that_changed_places_is_named(one: int, other: int) -> None:
    if one == other:
        return
    lines = list(EXPORT)
    lines[one - 1], lines[other - 1] = lines[other - 1], lines[one - 1]

    assert check(lines).first_bad_position == min(one, other)


@given(positions)
def test_events_that_are_missing_at_the_end_are_named_even_when_the_last_line_was_made_anew(left: int) -> None:
    for lines in (EXPORT[: left - 1], exported(LOG[: left - 1])):
        assert check(lines).first_bad_position == left


def test_a_log_that_was_rewritten_and_cut_may_be_bad_before_what_is_missing() -> None:
    cut = rehashed([*LOG[:24], *LOG[25:]])

    verdict = check(cut, 20, 60)

    assert (verdict.first_bad_position, verdict.range) == (60, (21, 60))
    assert check(cut, 20, 60, earlier=HASHES).range == (25, 25)


def test_a_last_line_that_does_not_fit_is_found() -> None:
    for last in (
        EXPORT[-1].replace(b'"count":60', b'"count":59'),
        EXPORT[-1].replace(b'"first_position":1', b'"first_position":2'),
        exported([*LOG[:-1], event(SIZE, text="other")])[-1],
    ):
        verdict = check([*EXPORT[:-1], last])
        assert (verdict.ok, verdict.first_bad_position) == (False, None)
    assert not check([*EXPORT, b"\n"]).ok
    assert check(EXPORT[:-1]).first_bad_position == SIZE + 1


# --- a history that was rewritten without a contradiction ------------------------------------------------------------


def rewritings(position: int) -> Iterator[list[bytes]]:
    """One event forged, removed, inserted or exchanged, and everything after it made to fit."""
    yield rehashed([*LOG[: position - 1], event(position, text="forged"), *LOG[position:]])
    yield rehashed([*LOG[: position - 1], *LOG[position:], event(SIZE + 1)])
    yield rehashed([*LOG[: position - 1], event(position, aggregate=9, version=1), *LOG[position - 1 :]])
    if position < SIZE:
        yield rehashed([*LOG[: position - 1], LOG[position], LOG[position - 1], *LOG[position + 1 :]])


@given(positions)
def test_a_rewritten_history_is_found_and_lies_after_the_last_right_checkpoint(position: int) -> None:
    for lines in rewritings(position):
        verdict = check(lines, 10, 20, 30, 40, 50, 60)

        assert not verdict.ok
        assert verdict.range is not None
        assert verdict.range[0] <= position <= verdict.range[1]
        assert verdict.range == ((position - 1) // 10 * 10 + 1, (position - 1) // 10 * 10 + 10)
        assert verdict.covered == verdict.range[0] - 1


@given(positions)
def test_beside_an_earlier_copy_the_first_rewritten_position_is_named(position: int) -> None:
    for lines in rewritings(position):
        verdict = check(lines, earlier=HASHES)

        assert (verdict.ok, verdict.first_bad_position) == (False, position)


@given(positions)
def test_checkpoints_on_both_sides_of_one_event_name_it(position: int) -> None:
    for lines in rewritings(position):
        sizes = [size for size in (position - 1, position, SIZE) if size]
        assert check(lines, *sizes).first_bad_position == position


def test_an_earlier_copy_narrows_what_lies_behind_it() -> None:
    forged = rehashed([*LOG[:54], event(55, text="forged"), *LOG[55:]])

    verdict = check(forged, 40, 60, earlier=HASHES[:50])

    assert (verdict.first_bad_position, verdict.range, verdict.covered) == (None, (51, 60), 40)


def test_a_forger_who_leaves_a_trace_is_told_where() -> None:
    wrong_version = [*LOG[:32], LOG[32]._replace(originator_version=99), *LOG[33:]]
    back_in_time = [*LOG[:32], LOG[32]._replace(recorded_us=0), *LOG[33:]]

    for events in (wrong_version, back_in_time):
        assert "position 33 contradicts what stands before it" in check(rehashed(events)).reason
        uncovered = audit.verify(rehashed(events), [checkpoint_of(LOG[:30])])
        assert (uncovered.ok, uncovered.first_bad_position) == (False, 33)


# --- evidence that is none -------------------------------------------------------------------------------------------


def test_two_roots_for_one_size_are_a_split_view() -> None:
    other = checkpoint_of(LOG)._replace(root=b"\x00" * 32)

    with pytest.raises(SplitView, match="size 60"):
        audit.verify(EXPORT, [checkpoint_of(LOG), other])


def test_an_earlier_copy_counts_as_far_as_a_checkpoint_vouches_for_it() -> None:
    checkpoints = [checkpoint_of(LOG[:size]) for size in (20, 40, 60)]

    assert audit.vouched(HASHES[:50], checkpoints) == 40
    with pytest.raises(EarlierRejected, match="no checkpoint covers"):
        audit.vouched(HASHES[:10], checkpoints)
    with pytest.raises(EarlierRejected, match="root of the checkpoint of size 20"):
        audit.vouched([*HASHES[:5], HASHES[0], *HASHES[6:]], checkpoints)


def test_an_earlier_copy_that_cannot_be_read_is_refused() -> None:
    for lines in (
        [b"something else\n"],
        [],
        EXPORT[1:],
        [audit.HASHES_HEADER, b"zz\n"],
        [audit.HASHES_HEADER, b"00\n"],
    ):
        with pytest.raises(EarlierRejected):
            audit.vouched(audit.hashes_of_copy(lines), [checkpoint_of(LOG)])


# --- size ------------------------------------------------------------------------------------------------------------


def test_memory_stays_flat_however_long_the_export_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "AGGREGATES_MAX", 100)

    def peak(size: int) -> int:
        events = (event(position, aggregate=position, version=1) for position in range(1, size + 1))
        lines = export.lines((each, export.hash_of(each)) for each in events)
        tracemalloc.start()
        assert audit.verify(lines, []).ok
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(20_000) < peak(2_000) + 64 * 1024


def split(changed: bytes) -> list[bytes]:
    """Lines as a file gives them: only a newline ends one."""
    return [line + b"\n" for line in changed.split(b"\n")[:-1]] + [line for line in changed.split(b"\n")[-1:] if line]
