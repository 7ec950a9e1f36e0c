"""The life of a request among scripted machines: failover, racing attempts, and its one end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.consumer.attempt import Attempt, Delta
from api.consumer.inference import CHUNKS_AT_ONCE_MAX, Consumed, Finished, Inference
from domain.errors import (
    AttemptTimedOut,
    AuthenticationFailed,
    InvalidRequest,
    ModelNotAvailable,
    ProviderFailed,
    ServiceUnavailable,
)
from domain.requests import RequestReleased, RequestSettled
from domain.routing import Hedging
from tests.simulation.virtual_time import run
from tests.support.race import (
    BURST_CHUNKS,
    GOOD,
    SILENT,
    SLOW,
    UNREACHABLE_UNTIL,
    USUAL_SECONDS,
    Act,
    Found,
    Interruption,
    Race,
    Script,
    warm,
)

ASSIGN: tuple[float, Found] = (0.01, "assign")
ERROR: Script = ((0.1, "accept"), (0.1, "error"))


def raced(race: Race) -> Race:
    run(race.run())
    race.check()
    return race


class TestOneAttempt:
    def test_an_answer_is_paid(self) -> None:
        race = raced(Race(GOOD))
        assert (race.text, race.winner, list(race.machines)) == ("11", 1, [1])
        assert isinstance(race.events[-1], Finished)
        assert race.hedging.hedges == 0

    def test_an_answer_in_one_piece_is_paid(self) -> None:
        race = raced(Race(((0.1, "accept"), (0.4, "content"), (0.1, "complete")), stream=False))
        assert race.text == "1"

    @pytest.mark.parametrize(
        ("script", "why"),
        [
            (((0.1, "accept"), (0.1, "content"), (0.1, "error")), ProviderFailed),
            (((0.1, "accept"), (0.1, "content"), (0.1, "lost")), ProviderFailed),
            (((0.1, "accept"), (0.1, "content")), AttemptTimedOut),
        ],
    )
    def test_a_failure_after_the_first_content_ends_the_answer_and_costs_nothing(
        self, script: Script, why: type[Exception]
    ) -> None:
        race = raced(Race(script, GOOD))
        assert isinstance(race.error, why)
        assert isinstance(race.end, RequestReleased)
        assert list(race.machines) == [1]

    @pytest.mark.parametrize("last_word", [True, False])
    def test_a_consumer_who_leaves_pays_what_the_machine_says_if_it_says_so(self, last_word: bool) -> None:
        script: list[tuple[float, Act]] = [(0.1, "accept"), (0.1, "content"), (50.0, "content")]
        if last_word:
            script.append((3_000.0, "last word"))
        race = raced(Race(script, interruption=Interruption(1.0, "consumer leaves")))
        assert isinstance(race.error, Consumed)
        assert isinstance(race.end, RequestSettled if last_word else RequestReleased)


class TestBursts:
    def test_chunks_that_are_here_together_go_out_together(self) -> None:
        race = raced(Race(((0.1, "accept"), (0.1, "burst"), (0.1, "complete"))))
        at_once = [len(event.chunk.choices) for event in race.events if isinstance(event, Delta)]
        assert at_once == [CHUNKS_AT_ONCE_MAX, BURST_CHUNKS - CHUNKS_AT_ONCE_MAX]
        assert race.text == "1" * BURST_CHUNKS

    def test_what_came_before_a_bad_chunk_is_delivered_before_the_answer_fails(self) -> None:
        race = raced(Race(((0.1, "accept"), (0.1, "spoilt burst"), (0.1, "complete"))))
        assert race.text == "11"
        assert isinstance(race.error, ProviderFailed)
        assert race.machines[1].untrusted


class TestFailover:
    @pytest.mark.parametrize(
        "first",
        [
            ERROR,
            ((0.1, "lost"),),
            ((0.1, "accept"), (0.1, "complete")),
            ((0.1, "bad"),),
            ((0.1, "flood"),),
            ((0.0, "deaf"),),
        ],
        ids=["error", "lost", "empty", "bad", "flood", "deaf"],
    )
    def test_another_machine_answers(self, first: Script) -> None:
        race = raced(Race(first, GOOD))
        assert race.text == "22"
        assert race.outcome_of(1) not in ("overtaken", "dispatched")
        assert race.asked_for[1].excluded == ("session-1",)

    @pytest.mark.parametrize("first", [((0.0, "stuck"),), ((3_000.0, "accept"),)], ids=["not sent", "not a word"])
    def test_a_machine_that_says_nothing_is_given_up_after_ten_seconds(self, first: Script) -> None:
        race = raced(Race(first, GOOD, hedging=Hedging(0, 0.95)))
        assert race.text == "22"
        assert 10 < race.seconds < 12

    def test_a_gateway_out_of_reach_is_not_held_against_its_machines(self) -> None:
        race = raced(Race(((0.1, "lost"),), GOOD, unreachable=["gateway"]))
        assert race.observed == [("machine-2", "job_done")]
        assert race.asked_for[1].excluded == ()

    def test_every_search_passes_over_gateways_that_are_out_of_reach(self) -> None:
        race = raced(Race(((0.1, "lost"),), GOOD, unreachable=["gateway"]))
        assert [job.out_of_reach for job in race.asked_for] == [{"gateway": UNREACHABLE_UNTIL}] * 2

    @pytest.mark.parametrize("first", [((0.1, "lost"),), ((0.0, "deaf"),)], ids=["lost", "deaf"])
    def test_after_a_gateway_failed_a_request_still_waits_for_a_machine(self, first: Script) -> None:
        race = raced(Race(first, GOOD, searches=[ASSIGN, (0.1, "wait")], unreachable=["gateway"]))
        assert race.text == "22"
        assert [job.may_wait for job in race.asked_for] == [True, True]

    def test_after_a_machine_failed_a_request_waits_no_more_whatever_gateways_do(self) -> None:
        race = raced(Race(ERROR, ((0.1, "lost"),), GOOD))
        assert [job.may_wait for job in race.asked_for] == [True, False, False]

    def test_a_request_that_waited_in_vain_after_a_gateway_failed_is_told_to_come_back(self) -> None:
        race = raced(Race(((0.1, "lost"),), searches=[ASSIGN, (0.1, "silence")], unreachable=["gateway"]))
        assert type(race.error) is ServiceUnavailable
        assert race.outcome_of(1) == "machine_lost"

    def test_there_are_three_attempts(self) -> None:
        race = raced(Race(ERROR))
        assert isinstance(race.error, ProviderFailed)
        assert str(race.error).startswith("No machine answered after 3 attempts;")
        assert list(race.machines) == [1, 2, 3]

    def test_a_refusal_of_the_request_itself_is_not_tried_again(self) -> None:
        race = raced(Race(((0.1, "refuse"),), GOOD))
        assert isinstance(race.error, InvalidRequest)
        assert list(race.machines) == [1]
        assert race.observed == []

    @pytest.mark.parametrize(
        ("found", "why"),
        [
            ("refuse", ModelNotAvailable),
            ("too large", InvalidRequest),
            ("silence", ServiceUnavailable),
            ("broken", ServiceUnavailable),
        ],
    )
    def test_without_a_machine_there_is_an_error_that_says_so(self, found: Found, why: type[Exception]) -> None:
        race = raced(Race(GOOD, searches=[(0.1, found)]))
        assert type(race.error) is why
        assert isinstance(race.end, RequestReleased)
        assert race.end.reason == ("rejected" if found == "refuse" else "failed")

    def test_no_machine_for_a_second_attempt_leaves_the_first_failure(self) -> None:
        race = raced(Race(ERROR, searches=[ASSIGN, (0.1, "refuse")]))
        assert str(race.error).startswith("No machine answered after 1 attempt;")

    def test_a_machine_that_comes_after_the_search_was_given_up_is_let_go(self) -> None:
        race = raced(Race(GOOD, searches=[(25.0, "assign")]))
        assert isinstance(race.error, ServiceUnavailable)
        assert not [machine for machine in race.machines.values() if machine.asked]

    def test_a_message_that_comes_twice_starts_one_attempt(self) -> None:
        race = raced(Race(GOOD, searches=[(0.1, "twice")]))
        assert race.text == "11"

    def test_a_message_that_comes_again_after_its_attempt_failed_keeps_no_slot(self) -> None:
        race = raced(Race(((0.1, "error"),), GOOD, searches=[(0.1, "twice"), ASSIGN]))
        assert race.text == "22"


class TestRacing:
    def test_a_late_first_content_is_overtaken_and_only_the_winner_is_paid(self) -> None:
        race = raced(Race(SLOW, GOOD))
        assert race.text == "22"
        assert race.outcome_of(1) == "overtaken"
        assert race.outcome_of(2) == "dispatched"
        assert race.asked_for[1].hedge
        assert not race.asked_for[1].may_wait
        assert race.asked_for[1].excluded == ("session-1",)
        assert (race.hedging.hedges, race.hedging.wins) == (1, 1)
        assert race.seconds < 3

    def test_the_loser_is_cancelled_at_the_first_content_of_the_winner(self) -> None:
        race = raced(Race(SLOW, GOOD))
        cancelled_at = race.machines[1].cancelled_at
        assert cancelled_at is not None
        assert cancelled_at == pytest.approx(0.01 + USUAL_SECONDS + 0.01 + 0.5, abs=0.01)

    def test_the_first_one_may_still_win(self) -> None:
        race = raced(Race(((0.1, "accept"), (1.2, "content"), (0.1, "complete")), SLOW))
        assert race.text == "1"
        assert race.outcome_of(2) == "overtaken"
        assert (race.hedging.hedges, race.hedging.wins) == (1, 0)

    def test_of_two_at_the_same_instant_one_wins(self) -> None:
        after_hedge = USUAL_SECONDS + 0.01
        race = raced(
            Race(((0.1, "accept"), (after_hedge, "content"), (0.0, "complete")), ((0.1, "content"), (0.0, "complete")))
        )
        assert race.text in ("1", "2")

    def test_both_may_be_late(self) -> None:
        late: Script = ((0.1, "accept"), (30.0, "content"), (0.1, "complete"))
        race = raced(Race(late))
        assert race.text == "1"
        assert race.hedging.hedges == 1

    def test_there_is_one_hedge_a_request_and_three_attempts_in_all(self) -> None:
        race = raced(Race(((0.1, "accept"), (20.0, "error")), ((0.1, "accept"), (0.1, "error")), SLOW))
        assert race.text == "33"
        assert [job.hedge for job in race.asked_for] == [False, True, False]
        assert race.hedging.wins == 0

    def test_all_three_may_fail(self) -> None:
        race = raced(Race(((0.1, "accept"), (3.0, "error")), ERROR))
        assert str(race.error).startswith("No machine answered after 3 attempts;")

    def test_a_second_machine_that_fails_leaves_the_first_at_work(self) -> None:
        race = raced(Race(SLOW, ((0.1, "error"),)))
        assert race.text == "11"
        assert race.outcome_of(2) == "machine_error"

    def test_a_first_machine_that_fails_leaves_the_second_at_work(self) -> None:
        race = raced(Race(((0.1, "accept"), (1.2, "error")), GOOD))
        assert race.text == "22"
        assert race.outcome_of(1) == "machine_error"
        assert race.hedging.wins == 0

    def test_a_winner_that_fails_later_ends_the_answer_though_the_loser_was_well(self) -> None:
        race = raced(Race(SLOW, ((0.1, "content"), (0.1, "lost"))))
        assert isinstance(race.error, ProviderFailed)
        assert isinstance(race.end, RequestReleased)
        assert race.outcome_of(1) == "overtaken"

    def test_without_another_machine_the_first_goes_on(self) -> None:
        race = raced(Race(SLOW, searches=[ASSIGN, (0.1, "refuse")]))
        assert race.text == "11"
        assert race.hedging.hedges == 0  # it did not happen, so it is not counted

    def test_a_hedge_that_is_refused_after_its_rival_failed_leaves_an_attempt_of_its_own(self) -> None:
        race = raced(Race(((0.1, "accept"), (1.2, "error")), GOOD, GOOD, searches=[ASSIGN, (2.0, "refuse"), ASSIGN]))
        assert race.text == "33"
        assert [job.hedge for job in race.asked_for] == [False, True, False]

    def test_a_refused_hedge_does_not_use_up_an_attempt(self) -> None:
        race = raced(
            Race(((0.1, "accept"), (2.0, "error")), ERROR, ERROR, GOOD, searches=[ASSIGN, (0.1, "refuse"), ASSIGN])
        )
        assert race.text == "44"

    @pytest.mark.parametrize("found", ["silence", "broken"])
    def test_a_scheduler_that_is_away_does_not_stop_the_machine_at_work(self, found: Found) -> None:
        slow: Script = ((0.1, "accept"), (40.0, "content"), (0.1, "complete"))
        race = raced(Race(slow, searches=[ASSIGN, (15.0, found)]))
        assert race.text == "1"

    def test_a_machine_that_is_found_after_the_first_content_is_let_go_unasked(self) -> None:
        slow: Script = ((0.1, "accept"), (1.5, "content"), (30.0, "content"), (0.1, "complete"))
        race = raced(Race(slow, searches=[ASSIGN, (3.0, "assign")]))
        assert race.text == "11"
        assert not race.machines[2].asked
        assert race.outcome_of(2) == "overtaken"

    def test_a_second_machine_that_cannot_be_sent_anything_delays_nothing(self) -> None:
        race = raced(Race(((0.1, "accept"), (2.0, "content"), (0.1, "complete")), ((0.0, "stuck"),)))
        assert race.text == "1"
        assert race.seconds < 3

    def test_a_loser_that_said_nothing_at_all_has_failed_and_one_that_did_has_not(self) -> None:
        mute = raced(Race(((3_000.0, "accept"),), GOOD))
        slow = raced(Race(SLOW, GOOD))
        assert mute.observed == [("machine-1", "job_failed"), ("machine-2", "job_done")]
        assert slow.observed == [("machine-2", "job_done")]

    def test_a_flood_of_the_loser_does_not_break_the_winner(self) -> None:
        race = raced(Race(((0.1, "accept"), (1.3, "flood")), GOOD))
        assert race.text == "22"

    @pytest.mark.parametrize("after_seconds", [0.005, 0.5, 1.2, 1.7])
    @pytest.mark.parametrize(
        ("what", "why"),
        [
            ("consumer leaves", Consumed),
            ("key is revoked", AuthenticationFailed),
            ("gateway stops", ServiceUnavailable),
        ],
    )
    def test_an_interruption_stops_both(self, after_seconds: float, what: str, why: type[Exception]) -> None:
        interruption = Interruption(after_seconds, what)  # type: ignore[arg-type]
        race = raced(Race(SILENT, interruption=interruption))
        assert type(race.error) is why
        assert isinstance(race.end, RequestReleased)

    def test_a_refusal_of_the_request_waits_for_the_other_machine(self) -> None:
        race = raced(Race(SLOW, ((0.1, "refuse"),)))
        assert race.text == "11"
        race = raced(Race(((0.1, "accept"), (2.0, "error")), ((0.1, "refuse"),)))
        assert isinstance(race.error, InvalidRequest)
        assert len(race.machines) == 2


class TestWhenThereIsNoRace:
    def test_nobody_knows_yet_what_is_late(self) -> None:
        race = raced(Race(SLOW, GOOD, hedging=Hedging(100, 0.95)))
        assert (race.text, race.hedging.hedges) == ("11", 0)

    def test_it_is_turned_off(self) -> None:
        race = raced(Race(SLOW, GOOD, hedging=warm(0)))
        assert (race.text, race.hedging.hedges) == ("11", 0)

    def test_the_budget_is_used_up(self) -> None:
        hedging = warm(5, requests=18)
        assert raced(Race(SLOW, GOOD, hedging=hedging)).text == "11"  # the 19th request
        assert raced(Race(SLOW, GOOD, hedging=hedging)).text == "22"
        assert raced(Race(SLOW, GOOD, hedging=hedging)).text == "11"
        assert (hedging.requests, hedging.hedges) == (21, 1)

    def test_an_answer_in_one_piece_is_measured_by_itself(self) -> None:
        hedging = Hedging(100, 0.95)
        for _ in range(50):
            hedging.note_first_content(("model", True), 0.1)
        whole: Script = ((0.1, "accept"), (5.0, "content"), (0.1, "complete"))
        assert raced(Race(whole, stream=False, hedging=hedging)).text == "1"
        assert hedging.hedges == 0


def test_a_machine_that_is_found_again_while_the_consumer_leaves_is_given_back() -> None:
    leaves = Interruption(1.0, "consumer leaves")
    race = raced(Race(ERROR, searches=((0.5, "twice"),), interruption=leaves))
    assert isinstance(race.error, Consumed)


ACTS: list[Act] = ["accept", "role", "content", "complete", "error", "refuse", "lost", "bad", "deaf", "stuck"]
SECONDS = st.sampled_from([0.0, 0.1, 0.4, 0.9, 1.0, 2.0, 9.9, 10.0, 70.0, 700.0])
SCRIPTS = st.one_of(
    st.sampled_from([GOOD, SLOW, SILENT, ERROR]),
    st.lists(st.tuples(SECONDS, st.sampled_from([*ACTS, "last word"])), max_size=5).map(tuple),
)
SEARCHES = st.tuples(
    st.sampled_from([0.0, 0.01, 0.5, 19.9, 25.0]),
    st.sampled_from(["assign", "assign", "assign", "wait", "refuse", "silence", "twice", "broken"]),
)
INTERRUPTIONS = st.none() | st.builds(
    Interruption,
    st.sampled_from([0.0, 0.01, 0.5, 1.0, 1.01, 1.02, 1.5, 1.52, 12.0]),
    st.sampled_from(["consumer leaves", "key is revoked", "gateway stops"]),
)
RACES = st.fixed_dictionaries(
    {
        "scripts": st.lists(SCRIPTS, min_size=1, max_size=4),
        "searches": st.lists(SEARCHES, min_size=1, max_size=4),
        "interruption": INTERRUPTIONS,
        "stream": st.booleans(),
    }
)


def race_of(chosen: dict[str, object], kind: type[Inference] = Inference) -> Race:
    scripts = chosen.pop("scripts")
    return Race(*scripts, **chosen, kind=kind)  # type: ignore[misc, arg-type]


@settings(max_examples=400)
@given(RACES)
def test_whatever_happens_there_is_one_end_and_money_and_machines_are_where_they_belong(
    chosen: dict[str, object],
) -> None:
    raced(race_of(chosen))


class ForgetsTheLoser(Inference):
    """The loser of a race goes on."""

    def _commit(self, winner: Attempt) -> None:
        self._answering = winner


class KeepsTheSlot(Inference):
    async def _let_go(self, attempt: Attempt, at_work: bool) -> None:
        await attempt.leave(at_work=at_work)


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (ForgetsTheLoser, "texts of two machines are mixed|two answers were begun|the wrong machine was paid"),
        (KeepsTheSlot, "a slot is kept"),
    ],
)
def test_a_broken_race_is_caught(broken: type[Inference], caught: str) -> None:
    late: Script = ((0.1, "accept"), (1.2, "content"), (3.0, "content"), (1.0, "complete"))
    race = Race(late, ((0.1, "accept"), (0.5, "content"), (0.1, "complete")), kind=broken)
    run(race.run())
    with pytest.raises(AssertionError, match=caught):
        race.check()
