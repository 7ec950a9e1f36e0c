"""A connected agent and a fake coordinator, with real sockets, real sealing and real MLX."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nacl.public import PrivateKey
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from adapters.crypto import signing
from adapters.crypto.box import SealedChannel, parse_public_key, public_key_text
from agent import models
from agent.engine.choice import Threads
from agent.errors import AlreadyRunning
from agent.identity import load_identity
from agent.link import Link, RetryPolicy
from agent.machine import Machine, Slot
from agent.posture import Hardening
from agent.serve import load_slot
from agent.shutdown import Shutdown
from agent.testing.fake_coordinator import FakeConnection, FakeCoordinator, FakeJob, bounded
from agent.testing.tiny_model import build_random_model, build_reciting_model
from domain import protocol

SCRIPT = [b"Once", b" upon", b" a", b" caf", b"\xc3", b"\xa9", b" \xf0", b"\x9f", b"\x99", b"\x82", b" end."]
STORY = "Once upon a café 🙂 end."
ENDLESS = [b"to", b"mor", b"row", b" and "]
CANARY = "canary-7144"
SERVED = ("story", "endless", "random")

SOON = RetryPolicy(first=0.02, longest=0.05, halved_by=10.0, refused=0.05)


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Slot]]:
    root = tmp_path_factory.mktemp("models")
    build_reciting_model(root / "story", SCRIPT)
    build_reciting_model(root / "endless", ENDLESS, endless=True, context_length=100_000)
    build_random_model(root / "random")
    threads = Threads()

    async def load() -> dict[str, Slot]:
        return {name: await load_slot(models.inspect(root / name), threads, 2) for name in SERVED}

    slots = asyncio.run(load())
    yield slots
    for slot in slots.values():
        slot.engine.close()
    assert threads.close()


@pytest.fixture
def machine(tmp_path: Path, slots: dict[str, Slot]) -> Machine:
    (tmp_path / "auth_token").write_text("eigeninference-pt-test\n")
    (tmp_path / "auth_token").chmod(0o600)
    hardware = protocol.Hardware(machine_model="test", chip_name="Test", memory_gb=16)
    return Machine(load_identity(tmp_path), hardware, Hardening(True, True, False), slots, tmp_path / "auth_token")


@pytest.fixture(autouse=True)
async def nothing_is_left_behind(slots: dict[str, Slot]) -> AsyncIterator[None]:
    """Whatever a test ends with, the engines become idle."""
    yield
    async with asyncio.timeout(30):
        while any(slot.engine.occupancy.running or slot.engine.occupancy.waiting for slot in slots.values()):
            await asyncio.sleep(0.005)


class Agent:
    """A link that runs in this loop."""

    def __init__(self, machine: Machine, url: str, *, once: bool = False, drain_timeout_seconds: float = 60.0) -> None:
        self.machine = machine
        self.shutdown = Shutdown(drain_timeout_seconds)
        link = Link(machine, self.shutdown, url, url, policy=SOON, once=once)
        self.task = asyncio.create_task(link.run())

    async def ended(self) -> int:
        await bounded(self.task)
        return self.shutdown.exit_code


@asynccontextmanager
async def connected(machine: Machine, **options: Any) -> AsyncIterator[tuple[FakeConnection, Agent, FakeCoordinator]]:
    async with FakeCoordinator() as coordinator:
        agent = Agent(machine, coordinator.url, **options)
        try:
            yield await coordinator.connection(), agent, coordinator
        finally:
            agent.task.cancel()
            await asyncio.gather(agent.task, return_exceptions=True)


def chat(content: str = "hi", model: str = "story", **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, **members}


def check_proof(connection: FakeConnection, job: FakeJob) -> None:
    """The completion's hash covers the delivered chunks, and the attested key signed it."""
    complete = job.outcome
    assert isinstance(complete, protocol.InferenceComplete)
    text = b"".join(chunk for chunk in job.chunks if chunk != protocol.STREAM_END)
    expected = hashlib.sha256(protocol.response_hash_input(job.id, complete.usage.completion_tokens) + text).hexdigest()
    assert complete.response_hash == expected
    assert isinstance(connection.register.attestation, msgspec.Raw)
    blob = json.loads(bytes(connection.register.attestation))["attestation"]
    signing.verify(blob["publicKey"], complete.se_signature, expected.encode())


class TestRegistration:
    async def test_the_first_frame_says_who_and_what_this_machine_is(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            register = connection.register
        assert register.backend == "inprocess-mlx"
        assert register.encrypted_response_chunks
        assert register.public_key == machine.identity.box_public
        assert register.auth_token == "eigeninference-pt-test"
        assert [model.id for model in register.models] == list(SERVED)
        assert all(len(model.weight_hash) == 64 and model.size_bytes > 0 for model in register.models)
        assert register.models[0].context_length == 512
        assert register.prefill_tps > 0
        assert register.decode_tps > 0

    async def test_the_attestation_is_sent_as_it_was_signed(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            attestation = connection.register.attestation
            frame = connection.register_frame
        assert isinstance(attestation, msgspec.Raw)
        parts = msgspec.json.decode(attestation, type=dict[str, msgspec.Raw])
        blob, signature = bytes(parts["attestation"]), json.loads(bytes(parts["signature"]))
        assert blob.decode() in frame
        signing.verify(machine.identity.signing_public, signature, blob)
        assert json.loads(blob)["encryptionPublicKey"] == connection.register.public_key

    async def test_only_what_was_achieved_is_claimed(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            capabilities = connection.register.privacy_capabilities
        assert capabilities.core_dumps_disabled
        assert capabilities.env_scrubbed
        assert not capabilities.anti_debug_enabled
        assert not capabilities.python_runtime_locked
        assert not capabilities.dangerous_modules_blocked

    async def test_a_challenge_is_answered_with_verifying_signatures(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit(chat(max_tokens=1))
            await job.completed()
            answer = await connection.challenge()
        key = machine.identity.signing_public
        signing.verify(key, answer.signature, protocol.challenge_message(answer.nonce, "2026-05-01T12:00:00Z"))
        signing.verify(key, answer.status_signature, protocol.canonical_status(answer, "2026-05-01T12:00:00Z"))
        assert answer.public_key == connection.register.public_key
        assert answer.model_hashes == {model.id: model.weight_hash for model in connection.register.models}
        assert answer.active_model_hash == answer.model_hashes["story"]


class TestAnswers:
    async def test_a_streamed_answer(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit(chat(stream=True))
            complete = await job.completed()
            assert job.accepted.is_set()
            assert job.chunks[-1] == protocol.STREAM_END
            first, *middle, last = job.payloads()
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert all(payload["choices"][0]["finish_reason"] is None for payload in middle)
            assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
            assert {payload["id"] for payload in job.payloads()} == {f"chatcmpl-{job.id}"}
            assert {payload["model"] for payload in job.payloads()} == {"story"}
            assert job.content() == STORY
            assert complete.usage == protocol.Usage(5, len(SCRIPT))
            check_proof(connection, job)

    async def test_choices_and_a_remembered_prompt_are_counted(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine.slots["random"].engine._decoder, "_memory_in_use", lambda: 0.0)
        asked = chat("a question to remember", n=2, cache_salt="f" * 64, model="random", max_tokens=6, temperature=0)
        async with connected(machine) as (connection, _, _):
            first = await (await connection.submit(asked)).completed()
            job = await connection.submit({**asked, "stream": True})
            second = await job.completed()
            check_proof(connection, job)
        assert first.usage.cached_tokens == 0
        assert second.usage.cached_tokens == first.usage.prompt_tokens - 1
        assert (second.usage.prompt_tokens, second.usage.completion_tokens) == (first.usage.prompt_tokens, 12)
        ends = [choice for payload in job.payloads() for choice in payload["choices"] if choice["finish_reason"]]
        assert sorted(choice["index"] for choice in ends) == [0, 1]

    async def test_a_whole_answer(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit(chat())
            complete = await job.completed()
            (payload,) = job.payloads()
            assert payload["choices"][0]["message"] == {"role": "assistant", "content": STORY}
            assert payload["usage"] == {
                "prompt_tokens": 5,
                "completion_tokens": 11,
                "total_tokens": 16,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            }
            assert complete.usage == protocol.Usage(5, 11)
            check_proof(connection, job)

    async def test_several_at_once_are_answered_as_each_alone(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            bodies = [chat(f"question {number}", "random", max_tokens=20, stream=True) for number in range(5)]
            alone = []
            for body in bodies:
                job = await connection.submit(body)
                await job.completed()
                alone.append(job.content())
            together = [await connection.submit(body) for body in bodies]
            for job in together:
                await job.completed()
                check_proof(connection, job)
            assert [job.content() for job in together] == alone

    async def test_every_chunk_is_sealed_under_the_registered_key_with_its_own_nonce(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            sealed: list[protocol.Sealed] = []
            take = FakeJob.take

            async def spy(job: FakeJob, message: protocol.FromProvider) -> None:
                if isinstance(message, protocol.InferenceResponseChunk):
                    assert message.data == ""
                    assert message.encrypted_data is not None
                    sealed.append(message.encrypted_data)
                await take(job, message)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FakeJob, "take", spy)
                await (await connection.submit(chat(stream=True))).completed()
            assert {value.ephemeral_public_key for value in sealed} == {connection.register.public_key}
            assert len({value.ciphertext[:32] for value in sealed}) == len(sealed)

    async def test_counters_and_models_stand_in_the_heartbeats(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(protocol, "HEARTBEAT_INTERVAL_SECONDS", 0.02)
        async with connected(machine) as (connection, _, _):
            first = await connection.heartbeat()
            assert (first.status, first.stats, first.active_model) == ("idle", protocol.SessionStats(0, 0), None)
            assert first.warm_models == SERVED
            assert first.backend_capacity is not None
            assert [slot.max_concurrency for slot in first.backend_capacity.slots] == [2, 2, 2]
            job = await connection.submit(chat(model="endless", max_tokens=50_000, stream=True))
            await job.chunk(3)
            async with asyncio.timeout(30):
                # The first one may have been made before the first token was.
                slot = protocol.Slot("", "")
                while slot.active_tokens <= 5:
                    busy = await connection.heartbeat()
                    assert busy.backend_capacity is not None
                    slot = busy.backend_capacity.slots[1]
            assert (busy.status, busy.active_model) == ("serving", "endless")
            assert (slot.model, slot.num_running, slot.max_tokens_potential) == ("endless", 1, 50_000)
            await connection.send(protocol.Cancel(job.id))
            complete = await job.completed()
            async with asyncio.timeout(30):
                while (idle := await connection.heartbeat()).status != "idle":
                    pass
            assert idle.stats == protocol.SessionStats(1, complete.usage.completion_tokens)


class TestCancellation:
    async def test_after_some_content_the_delivered_tokens_are_reported(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit(chat(model="endless", max_tokens=50_000, stream=True))
            await job.chunk(3)
            await connection.send(protocol.Cancel(job.id))
            complete = await job.completed()
            check_proof(connection, job)
            assert protocol.STREAM_END not in job.chunks
            # Each token of this model is one known piece of text.
            delivered = job.content()
            tokens = 0
            for token in itertools.cycle(ENDLESS):
                if not delivered:
                    break
                assert delivered.startswith(token.decode())
                delivered = delivered.removeprefix(token.decode())
                tokens += 1
            assert complete.usage == protocol.Usage(5, tokens)
            count = len(job.chunks)
            await connection.challenge()
            assert len(job.chunks) == count

    async def test_before_any_content_nothing_is_reported(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit(chat(model="endless", max_tokens=50_000))
            await bounded(job.accepted.wait())
            await connection.send(protocol.Cancel(job.id))
            # Answered after the cancel was handled, and after everything that the job had to say.
            await (await connection.submit(chat())).completed()
            await connection.challenge()
            assert job.outcome is None
            assert job.chunks == []

    async def test_unknown_and_finished_jobs_are_ignored(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit(chat())
            await job.completed()
            await connection.send(protocol.Cancel(job.id))
            await connection.send(protocol.Cancel("unknown"))
            assert (await (await connection.submit(chat())).completed()).usage.completion_tokens == 11


class TestRefusals:
    async def test_a_request_without_an_encrypted_body(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit_sealed(None, job_id="a")
            failure = await job.failed()
            assert (failure.status_code, failure.error) == (400, "the request is not encrypted")
            assert not job.accepted.is_set()

    async def test_a_plaintext_body_is_refused_unread(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit_sealed(None, job_id="a")
            await job.failed()
            plain = {"type": "inference_request", "request_id": "b", "body": chat(CANARY)}
            connection.jobs["b"] = second = FakeJob("b", job._channel)
            await connection.socket.send(json.dumps(plain))
            assert (await second.failed()).status_code == 400

    @pytest.mark.parametrize("damage", ["key", "ciphertext", "sender", "short", "base64"])
    async def test_a_body_that_cannot_be_decrypted(self, machine: Machine, damage: str) -> None:
        async with connected(machine) as (connection, _, _):
            session = PrivateKey.generate()
            channel = SealedChannel(session, parse_public_key(connection.register.public_key))
            key, text = public_key_text(session), channel.seal(json.dumps(chat()).encode())
            sealed = {
                "key": protocol.Sealed("AAAA", text),
                "ciphertext": protocol.Sealed(key, "A" + text[1:] if text[0] != "A" else "B" + text[1:]),
                "sender": protocol.Sealed(public_key_text(PrivateKey.generate()), text),
                "short": protocol.Sealed(key, "AAAA"),
                "base64": protocol.Sealed(key, "%%%"),
            }[damage]
            failure = await (await connection.submit_sealed(sealed, job_id="a")).failed()
            assert (failure.status_code, failure.error) == (400, "the request cannot be decrypted")

    async def test_a_schema_that_does_not_compile(self, machine: Machine) -> None:
        schema = {"type": "json_schema", "json_schema": {"schema": {"type": CANARY}}}
        async with connected(machine) as (connection, _, _):
            failure = await (await connection.submit(chat(response_format=schema))).failed()
        assert (failure.status_code, failure.error) == (400, "response_format: the JSON schema does not compile")

    async def test_a_job_id_that_was_used_before(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            await (await connection.submit(chat(), job_id="a")).completed()
            failure = await (await connection.submit(chat(), job_id="a")).failed()
            assert failure.status_code == 400

    @pytest.mark.parametrize(
        ("body", "status", "text"),
        [
            (b"{" + CANARY.encode(), 400, "the request body is not a JSON object"),
            (chat(model="stor"), 404, "This machine does not serve the requested model."),
            (chat(model="story-2"), 404, "This machine does not serve the requested model."),
            (chat(functions=[{}]), 400, "functions: not supported by this machine"),
            (chat(CANARY, best_of=2), 400, "best_of: not supported by this machine"),
        ],
    )
    async def test_a_body_that_cannot_be_run(
        self, machine: Machine, body: dict[str, Any] | bytes, status: int, text: str
    ) -> None:
        async with connected(machine) as (connection, _, _):
            job = await connection.submit(body)
            failure = await job.failed()
            assert (failure.status_code, failure.error) == (status, text)
            assert not job.accepted.is_set()

    async def test_a_prompt_that_does_not_fit(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            failure = await (await connection.submit(chat("x" * 600))).failed()
            assert failure.status_code == 400
            assert "603 tokens" in failure.error

    async def test_a_full_queue(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, _):
            jobs = [await connection.submit(chat(model="endless", max_tokens=50_000)) for _ in range(6)]
            for job in jobs:
                await bounded(job.accepted.wait())
            assert (await (await connection.submit(chat(model="endless"))).failed()).status_code == 503
            assert (await (await connection.submit(chat())).completed()).usage.completion_tokens == 11

    async def test_frames_that_are_no_messages_are_logged_once_and_ignored(
        self, machine: Machine, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            async with connected(machine) as (connection, _, _):
                unknown = json.dumps({"type": "from_the_future", "text": CANARY})
                for frame in (unknown, "{", '{"type":"cancel"}', b"binary"):
                    await connection.socket.send(frame)
                    await connection.socket.send(frame)
                await (await connection.submit(chat())).completed()
        assert caplog.text.count("from_the_future") == 1
        assert CANARY not in caplog.text


class TestDrain:
    async def test_accepted_work_is_finished_and_new_work_refused(self, machine: Machine) -> None:
        async with connected(machine) as (connection, agent, _):
            await connection.heartbeat()
            job = await connection.submit(chat(model="endless", max_tokens=400, stream=True))
            await job.chunk(1)
            agent.shutdown.on_signal(signal.SIGTERM)
            assert (await connection.heartbeat()).status == "draining"
            refused = await (await connection.submit(chat())).failed()
            assert refused.status_code == 503
            complete = await job.completed()
            assert complete.usage.completion_tokens == 400
            assert await agent.ended() == 0
            await bounded(connection.closed.wait())
            assert connection.socket.close_code == 1000

    async def test_an_idle_agent_says_so_and_leaves(self, machine: Machine) -> None:
        async with connected(machine) as (connection, agent, _):
            await connection.heartbeat()
            agent.shutdown.on_signal(signal.SIGINT)
            assert (await connection.heartbeat()).status == "draining"
            assert await agent.ended() == 0
            await bounded(connection.closed.wait())
            assert connection.socket.close_code == 1000

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    async def test_a_second_signal_aborts_with_an_error_for_each_open_job(
        self, machine: Machine, number: signal.Signals, code: int
    ) -> None:
        async with connected(machine) as (connection, agent, _):
            jobs = [await connection.submit(chat(model="endless", max_tokens=50_000)) for _ in range(3)]
            for job in jobs:
                await bounded(job.accepted.wait())
            agent.shutdown.on_signal(signal.SIGTERM)
            agent.shutdown.on_signal(number)
            for job in jobs:
                assert (await job.failed()).status_code == 503
            assert await agent.ended() == code

    async def test_work_beyond_the_deadline_is_aborted(self, machine: Machine) -> None:
        async with connected(machine, drain_timeout_seconds=0.05) as (connection, agent, _):
            job = await connection.submit(chat(model="endless", max_tokens=50_000))
            await bounded(job.accepted.wait())
            agent.shutdown.on_signal(signal.SIGTERM)
            assert (await job.failed()).status_code == 503
            assert await agent.ended() == 9

    async def test_once_ends_after_the_first_completed_request(self, machine: Machine) -> None:
        async with connected(machine, once=True) as (connection, agent, _):
            await (await connection.submit(b"{}")).failed()
            await (await connection.submit(chat())).completed()
            assert await agent.ended() == 0

    async def test_a_signal_while_the_coordinator_is_away_ends_at_once(self, machine: Machine) -> None:
        agent = Agent(machine, "ws://127.0.0.1:9/ws/provider")
        await asyncio.sleep(0)
        agent.shutdown.on_signal(signal.SIGTERM)
        assert await agent.ended() == 0


class TestConnection:
    @pytest.mark.parametrize("code", [1000, 1001, 1012])
    async def test_a_clean_close_is_followed_by_a_new_registration(self, machine: Machine, code: int) -> None:
        async with connected(machine) as (connection, _, coordinator):
            await connection.close(code, "restarting")
            second = await coordinator.connection()
            assert second.register.public_key == connection.register.public_key
            await (await second.submit(chat())).completed()

    async def test_a_lost_connection_ends_its_jobs_and_nothing_is_said_of_them(
        self, machine: Machine, slots: dict[str, Slot]
    ) -> None:
        async with connected(machine) as (connection, _, coordinator):
            job = await connection.submit(chat(model="endless", max_tokens=50_000, stream=True))
            await job.chunk(1)
            connection.socket.transport.abort()
            second = await coordinator.connection()
            second.jobs[job.id] = job
            async with asyncio.timeout(30):
                while slots["endless"].engine.occupancy.running:
                    await asyncio.sleep(0.005)
            await second.challenge()
            assert job.outcome is None

    async def test_job_ids_start_afresh_on_each_connection(self, machine: Machine) -> None:
        async with connected(machine) as (connection, _, coordinator):
            await (await connection.submit(chat(), job_id="a")).completed()
            await connection.close(1001)
            second = await coordinator.connection()
            await (await second.submit(chat(), job_id="a")).completed()

    async def test_a_policy_close_is_a_refusal_with_its_reason(
        self, machine: Machine, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with connected(machine) as (connection, _, coordinator):
            await connection.close(1008, "challenge timeouts")
            await coordinator.connection()
        assert "refused this machine: challenge timeouts; trying again" in caplog.text

    async def test_a_refused_upgrade_is_a_refusal_too(self, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
        asked = asyncio.Event()

        def refuse(connection: ServerConnection, request: Request) -> Response:
            asked.set()
            return connection.respond(HTTPStatus.FORBIDDEN, "no\n")

        async def nothing(connection: ServerConnection) -> None:
            await connection.wait_closed()

        async with serve(nothing, "127.0.0.1", 0, process_request=refuse) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            agent = Agent(machine, f"ws://127.0.0.1:{port}/")
            for _ in range(2):
                await bounded(asked.wait())
                asked.clear()
            agent.shutdown.on_signal(signal.SIGTERM)
            await agent.ended()
        assert "refused this machine: HTTP status 403" in caplog.text

    async def test_being_replaced_ends_the_agent(self, machine: Machine) -> None:
        async with connected(machine) as (connection, agent, _):
            await connection.close(1000, "replaced by new connection from same device")
            with pytest.raises(AlreadyRunning) as caught:
                await agent.ended()
            assert caught.value.exit_code == 9

    async def test_trust_is_logged_when_it_changes(self, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            async with connected(machine) as (connection, _, coordinator):
                low = protocol.TrustStatus("none", "online", "no\nchallenge; wait | too hot; cool it")
                for trust in (low, low, protocol.TrustStatus("self_signed", "online", "")):
                    await connection.send(trust)
                await (await connection.submit(chat())).completed()
                lines = [record.getMessage() for record in caplog.records]
                lines = [line for line in lines if "trust" in line or line.startswith("- ")]
        served = ", ".join(SERVED)
        assert lines == [
            f"connected to {coordinator.url}; trust not reported yet; serving {served}",
            f"connected to {coordinator.url}; trust none, status online, but something is in the way; serving {served}",
            "- no challenge; wait",
            "- too hot; cool it",
            f"connected to {coordinator.url}; trust self_signed, status online; serving {served}",
        ]


async def test_no_prompt_and_no_answer_reaches_the_log(
    machine: Machine, slots: dict[str, Slot], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("websockets").setLevel(logging.WARNING)
        async with connected(machine) as (connection, _, _):
            await (await connection.submit(chat(CANARY, stream=True, stop=CANARY))).completed()
            await (await connection.submit(chat(CANARY * 200))).failed()
            await (await connection.submit(chat(CANARY, tools=[CANARY]))).failed()
            await (await connection.submit({CANARY: CANARY})).failed()
            await (await connection.submit(CANARY.encode())).failed()

            def fail(*_: object) -> None:
                raise RuntimeError(CANARY)

            monkeypatch.setattr(slots["story"].engine._preparer, "prepare", fail)
            assert (await (await connection.submit(chat(CANARY))).failed()).status_code == 500
    everything = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "canary" not in everything
    assert "café" not in everything
