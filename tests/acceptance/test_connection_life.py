"""A machine's connection over time: silence, unanswered challenges, a coordinator that restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from domain.protocol import AttestationChallenge
from tests.support.machine import MODEL, Machine
from tests.support.processes import Coordinator, agent, coordinator, eventually


class NeverAnswers(Machine):
    """Ignores challenges after it has passed the first one."""

    passed = False

    def _answer_challenge(self, challenge: AttestationChallenge):  # type: ignore[no-untyped-def]  # as its parent
        answer = super()._answer_challenge(challenge)
        if self.passed:
            return type(answer)(nonce="not this one", signature="", public_key=self.public_key)
        self.passed = True
        return answer


async def test_silent_and_unanswering_machines_lose_their_place(tmp_path: Path, database: str) -> None:
    quick = {
        "DARKBLOOM_HEARTBEAT_AGE_SECONDS_MAX": "2",
        "DARKBLOOM_CHALLENGE_INTERVAL_SECONDS": "0.4",
        "DARKBLOOM_CHALLENGE_ANSWER_SECONDS": "0.2",
    }
    with coordinator(tmp_path, database=database, env=quick) as running:
        async with NeverAnswers(running.url).connected() as machine:
            async with asyncio.timeout(20):
                while not (machine.status and machine.status.status == "untrusted"):  # three strikes
                    await machine.heartbeat()
                    await asyncio.sleep(0.05)
            assert "3 times in a row" in machine.status.reason
            async with asyncio.timeout(20):
                await machine.closed.wait()  # the heartbeats stopped
            assert machine.close_reason == "no heartbeat"
        closed = (
            "SELECT convert_from(state, 'UTF8')::jsonb ->> 'reason' FROM events"
            " WHERE topic = 'ProviderMachine.ProviderSessionClosed'"
        )
        reasons = await asyncio.to_thread(eventually, lambda: running.books.rows(closed), "the end of the session")
        assert reasons == [("no heartbeat",)]


@pytest.mark.parametrize("how", ["terminate", "kill_9"])
def test_an_agent_comes_back_to_a_coordinator_that_restarts(
    tmp_path: Path, tiny_model: Path, database: str, how: str
) -> None:
    with coordinator(tmp_path, database=database) as first:
        key = first.books.open_account(5_000_000)
        port = int(first.url.rpartition(":")[2])
        with agent(tmp_path, first.url, tiny_model):
            eventually(lambda: MODEL in first.models(key.secret), "the agent to be routable")
            getattr(first.process, how)()
            with coordinator(tmp_path, database=database, port=port) as second:
                eventually(lambda: MODEL in second.models(key.secret), "the agent to come back")
                _ask(second, key.secret)


def _ask(running: Coordinator, secret: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    with running.client(secret) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
