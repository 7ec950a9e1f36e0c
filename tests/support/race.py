"""One request from its admission to its end, among scripted machines and a scripted scheduler, on the real ledger.

Time jumps, and ``check`` holds whatever the script was: one end, money where it belongs, no slot kept, no machine at
work for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4

from adapters.scheduler.scheduler import release_of, settlement_of
from api.consumer.admission import Bounds
from api.consumer.answers import Whole, read_chunk, read_whole
from api.consumer.attempt import Delta, Started
from api.consumer.expected import Expected
from api.consumer.inference import (
    ATTEMPTS_MAX,
    CHUNKS_AT_ONCE_MAX,
    Consumed,
    Event,
    Finished,
    Inference,
    Timeouts,
    Tools,
)
from api.inbox import Aborted, Inbox, KeyRevoked, MachineLost
from domain.catalog import CatalogModel
from domain.dispatch import Assigned, DispatchJob, Job, Refused, ReleaseJob, SettleJob, Waiting
from domain.errors import DarkbloomError, ServiceUnavailable
from domain.ledger import Dispatch
from domain.protocol import (
    Cancel,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    Sealed,
    Usage,
)
from domain.requests import InferenceRequest as RequestAggregate
from domain.requests import JobFailed, RequestReleased, RequestSettled, job_id_of
from domain.routing import Hedging, Observation, Snapshot
from domain.wallet import Wallet
from tests.support.examples import ONE_TO_ONE, admit, grant, snapshot
from tests.support.memory_ledger import MemoryLedger

KIND = ("model", True)
USUAL_SECONDS = 1.0
CREDIT = 10_000
BURST_CHUNKS = CHUNKS_AT_ONCE_MAX + 6
USAGE = Usage(3, 2)

TIMEOUTS = Timeouts(
    queue_wait=120.0,
    no_provider_wait=15.0,
    first_signal=10.0,
    first_content=600.0,
    chunk_gap=60.0,
    request_max=3_600.0,
    settle_wait=10.0,
    cancel_grace=30.0,
)

UNREACHABLE_UNTIL = 2e9
"""Until when (Unix seconds) a gateway that is out of reach is passed over."""

Act = Literal[
    "accept",
    "role",
    "content",
    "burst",
    "spoilt burst",
    "complete",
    "error",
    "refuse",
    "lost",
    "bad",
    "flood",
    "deaf",
    "stuck",
    "last word",
]
"""What a machine does. A ``burst`` is BURST_CHUNKS at once, and a ``spoilt burst`` three with a bad one behind the
second. ``error`` may be tried elsewhere and ``refuse`` not, ``deaf`` cannot be sent anything, ``stuck`` takes for ever
to be sent it, ``last word`` is a usage that comes after a cancel."""

Script = Sequence[tuple[float, Act]]
"""Acts, and how many seconds each comes after the one before."""

GOOD: Script = ((0.1, "accept"), (0.4, "content"), (0.1, "content"), (0.1, "complete"))
SLOW: Script = ((0.1, "accept"), (5.0, "content"), (0.1, "content"), (0.1, "complete"))
SILENT: Script = ((0.1, "accept"),)

Found = Literal["assign", "wait", "refuse", "too large", "silence", "twice", "broken"]
"""What the scheduler does about an attempt; ``wait`` and ``twice`` assign too."""


class Interruption(NamedTuple):
    after_seconds: float
    what: Literal["consumer leaves", "key is revoked", "gateway stops"]


class PlainChannel:
    """Seals nothing."""

    public_key = "consumer"

    def seal(self, text: bytes) -> str:
        return text.decode()

    def open(self, sealed: str) -> bytes:
        return sealed.encode()


class PlainSealing:
    def channel(self, provider_key: str) -> PlainChannel:
        return PlainChannel()

    def is_key(self, provider_key: str) -> bool:
        return True

    def verify(self, public_key: str, signature: str, message: bytes) -> None:
        """Everything holds."""

    def raw_key(self, public_key: str) -> bytes:
        return b""


class ScriptedMachine:
    """The link to a machine that follows a script. Its text is its attempt's number."""

    def __init__(self, number: int, script: Script, *, stream: bool) -> None:
        self.number = number
        self.asked = False
        self.cancelled_at: float | None = None
        self.done = False
        self.untrusted = False
        self._script = script
        self._stream = stream
        self._inbox: Inbox | None = None
        self._job_id = ""
        self._acting: asyncio.Task[None] | None = None

    @property
    def at_work(self) -> bool:
        return self.asked and not self.done and self.cancelled_at is None

    def open_job(self, job_id: str, inbox: Inbox) -> None:
        self._job_id, self._inbox = job_id, inbox

    def close_job(self, job_id: str) -> None:
        self._inbox = None

    async def send(self, message: InferenceRequest | Cancel) -> None:
        acts = [act for _, act in self._script]
        if isinstance(message, Cancel):
            self.cancelled_at = asyncio.get_running_loop().time()
            if "last word" in acts and not self.done:
                self.done = True
                self._put(InferenceComplete(request_id=self._job_id, usage=USAGE))
            return
        if "deaf" in acts:
            raise ConnectionError
        if "stuck" in acts:
            await asyncio.Event().wait()
        self.asked = True
        self._acting = asyncio.create_task(self._act())

    async def violated(self, what: str) -> None:
        self.untrusted = True

    async def stop(self) -> None:
        if self._acting is not None:
            self._acting.cancel()
            await asyncio.gather(self._acting, return_exceptions=True)

    async def _act(self) -> None:
        for seconds, act in self._script:
            await asyncio.sleep(seconds)
            if self.cancelled_at is None and not self.done:
                self._do(act)

    def _do(self, act: Act) -> None:
        match act:
            case "accept":
                self._put(InferenceAccepted(request_id=self._job_id))
            case "role":
                self._chunk('{"choices":[{"index":0,"delta":{"role":"assistant"}}]}')
            case "content" if self._stream:
                self._chunk(f'{{"choices":[{{"index":0,"delta":{{"content":"{self.number}"}}}}]}}')
            case "content":
                self._chunk(f'{{"choices":[{{"index":0,"message":{{"content":"{self.number}"}}}}]}}')
            case "burst":
                for _ in range(BURST_CHUNKS):
                    self._do("content")
            case "spoilt burst":
                for part in ("content", "content", "bad", "content"):
                    self._do(part)  # type: ignore[arg-type]
            case "bad":
                self._chunk("?")
            case "flood":
                for _ in range(5):
                    self._chunk(f'{{"choices":[{{"index":0,"delta":{{"role":"{"x" * 2**21}"}}}}]}}')
            case "complete":
                self.done = True
                self._put(InferenceComplete(request_id=self._job_id, usage=USAGE))
            case "error" | "refuse":
                self.done = True
                self._put(
                    InferenceError(request_id=self._job_id, error="?", status_code=500 if act == "error" else 400)
                )
            case "lost":
                self.done = True
                self._put(MachineLost(self._job_id))

    def _chunk(self, text: str) -> None:
        self._put(InferenceResponseChunk(self._job_id, Sealed(f"key-{self.number}", f"data: {text}")))

    def _put(self, item: Any) -> None:
        if self._inbox is not None:
            self._inbox.put(item)


class Race:
    """The world of one request. ``searches`` says for each attempt's number after how many seconds the scheduler does
    what; the last one goes on for all that follow, as the last of ``scripts`` does."""

    def __init__(
        self,
        *scripts: Script,
        searches: Sequence[tuple[float, Found]] = ((0.01, "assign"),),
        interruption: Interruption | None = None,
        stream: bool = True,
        hedging: Hedging | None = None,
        kind: type[Inference] = Inference,
        unreachable: Sequence[str] = (),
    ) -> None:
        self.request_id = uuid4()
        self.hedging = hedging or warm()
        self.machines: dict[int, ScriptedMachine] = {}
        self.claims: set[int] = set()
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.asked_for: list[DispatchJob] = []
        self.observed: list[tuple[str, str]] = []
        self.seconds = 0.0
        self.ledger = MemoryLedger()
        self._scripts = scripts
        self._searches = searches
        self._interruption = interruption
        self._stream = stream
        self._kind = kind
        self._unreachable = tuple(unreachable)
        self._inbox = Inbox()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Race:
        self.ledger.execute(grant("ada", CREDIT))
        self.ledger.execute(admit("ada", request_id=self.request_id, quote=ONE_TO_ONE))
        inference = self._kind(
            request_id=self.request_id,
            account_id="ada",
            model=CatalogModel(id="model", display_name="Model"),
            bounds=Bounds(
                prompt_bound=1_000, output_bound=1_000, prompt_estimate=10, output_estimate=10, output_limit=1_000
            ),
            expected=Expected(self._stream),
            reader=lambda: read_chunk if self._stream else read_whole,
            body=b"{}",
            inbox=self._inbox,
            tools=Tools(
                jobs=self,
                fleet=self,  # type: ignore[arg-type]  # only what a request uses of it
                sealing=PlainSealing(),
                machine_link=self._link,
                gateway_id=lambda: UUID(int=1),
                timeouts=TIMEOUTS,
                end_later=lambda job: None,
                observe=self._observe,
                hedging=self.hedging,
                unreachable=lambda: dict.fromkeys(self._unreachable, UNREACHABLE_UNTIL),
            ),
            timing_us={},
        )
        if self._interruption is not None:
            self._do_beside(self._interrupt(inference, self._interruption))
        try:
            async for event in inference.events():
                self.events.append(event)
        except (DarkbloomError, Consumed) as error:
            self.error = error
        self.seconds = asyncio.get_running_loop().time()
        await asyncio.sleep(TIMEOUTS.request_max)  # what still comes must change nothing
        for task in list(self._tasks):
            task.cancel()
        for machine in self.machines.values():
            await machine.stop()
        return self

    # --- what is seen afterwards -----------------------------------------------------------------------------------

    @property
    def end(self) -> RequestSettled | RequestReleased | None:
        return self.ledger.state_of(RequestAggregate, str(self.request_id)).end

    @property
    def text(self) -> str:
        spoken = ""
        for event in self.events:
            if isinstance(event, Delta):
                spoken += "".join(choice.delta.content or "" for choice in event.chunk.choices)
            if isinstance(event, Whole):
                spoken += "".join(choice.message.content or "" for choice in event.choices)
        return spoken

    @property
    def winner(self) -> int | None:
        """The number of the attempt that answered."""
        started = [event for event in self.events if isinstance(event, Started)]
        return int(started[0].machine.session_id.removeprefix("session-")) if started else None

    def outcome_of(self, number: int) -> str:
        """What the log says of an attempt."""
        job_id = str(job_id_of(self.request_id, number))
        for event in self.ledger.events:
            if isinstance(event, JobFailed) and event.job_id == job_id:
                return event.reason
        dispatched = job_id in self.ledger.state_of(RequestAggregate, str(self.request_id)).jobs
        return "dispatched" if dispatched else "never dispatched"

    def check(self) -> None:
        """What holds however the race went."""
        assert self.end is not None, "the request has no end"
        asked = [machine for machine in self.machines.values() if machine.asked]
        assert len(asked) <= ATTEMPTS_MAX, "too many machines were asked"
        assert not [machine.number for machine in asked if machine.at_work], "a machine is at work for nobody"
        assert not self.claims, "a slot is kept"
        assert sum(isinstance(event, Started) for event in self.events) <= 1, "two answers were begun"
        assert set(self.text) <= {str(self.winner)}, "texts of two machines are mixed"
        self._check_money()
        assert self.hedging.hedges <= self.hedging.requests, "more hedges than the budget allows"
        finished = [event for event in self.events if isinstance(event, Finished)]
        assert bool(finished) == (self.error is None), "an answer ends with a last word or with an error"
        assert self.seconds <= TIMEOUTS.request_max + TIMEOUTS.cancel_grace

    def _check_money(self) -> None:
        end, wallet = self.end, self.ledger.state_of(Wallet, "ada")
        paid = {number: self.ledger.state_of(Wallet, f"owner-{number}").balance for number in self.machines}
        cost = end.cost if isinstance(end, RequestSettled) else 0
        assert wallet.balance == CREDIT - cost, "the consumer paid something else than the cost"
        assert sum(paid.values()) == cost, "providers did not earn what was paid"
        assert not cost or paid[self.winner or 0] == cost, "the wrong machine was paid"
        assert not (isinstance(self.events[-1:] and self.events[-1], Finished) and not cost), "an answer was not paid"

    # --- the gateway's ports -----------------------------------------------------------------------------------------

    async def send(self, job: Job) -> None:
        assert isinstance(job, DispatchJob)
        self.asked_for.append(job)
        seconds, found = self._searches[min(job.attempt, len(self._searches)) - 1]
        if found == "broken":
            await asyncio.sleep(seconds)
            raise ServiceUnavailable
        self._do_beside(self._search(job, seconds, found))

    async def end_now(self, job: SettleJob | ReleaseJob) -> RequestSettled | RequestReleased:
        await asyncio.sleep(0.001)
        return self.ledger.execute(settlement_of(job, 0) if isinstance(job, SettleJob) else release_of(job))

    async def release(self, request_id: UUID, attempt: int) -> list[DispatchJob]:
        await asyncio.sleep(0.001)
        self.claims.discard(attempt)
        return []

    async def leave_queue(self, request_id: UUID) -> None:
        """There is no queue here."""

    # --- the others --------------------------------------------------------------------------------------------------

    async def _search(self, job: DispatchJob, seconds: float, found: Found) -> None:
        await asyncio.sleep(seconds)
        number = job.attempt
        if found in ("refuse", "too large"):
            reason = "no_machine" if found == "refuse" else "too_large"
            self._tell(Refused(request_id=self.request_id, attempt=number, reason=reason))
        if found == "wait":
            self._tell(Waiting(request_id=self.request_id, attempt=number, machines=1))
            await asyncio.sleep(1.0)
        for _ in range({"assign": 1, "wait": 1, "twice": 2}.get(found, 0)):
            self._assign(job)
            await asyncio.sleep(0.5)

    def _assign(self, job: DispatchJob) -> None:
        number = job.attempt
        self.claims.add(number)
        machine = self._snapshot(number)
        recorded = self.ledger.execute(
            Dispatch(
                request_id=self.request_id,
                attempt=number,
                provider_id=machine.session_id,
                machine_id=machine.machine_id,
                provider_key=machine.provider_key,
                provider_account_id=machine.account_id,
                failures=job.failures,
            )
        )
        if not recorded:
            self.claims.discard(number)
            return
        script = self._scripts[min(number, len(self._scripts)) - 1]
        self.machines.setdefault(number, ScriptedMachine(number, script, stream=self._stream))
        job_id = str(job_id_of(self.request_id, number))
        self._tell(Assigned(request_id=self.request_id, attempt=number, job_id=job_id, machine=machine))

    @staticmethod
    def _snapshot(number: int) -> Snapshot:
        return snapshot(
            session_id=f"session-{number}",
            machine_id=f"machine-{number}",
            account_id=f"owner-{number}",
            provider_key=f"key-{number}",
        )

    def _link(self, machine: Snapshot) -> ScriptedMachine:
        return self.machines[int(machine.session_id.removeprefix("session-"))]

    def _tell(self, notice: Assigned | Waiting | Refused) -> None:
        self._inbox.put(notice)

    def _observe(self, machine_id: str, seen: Observation) -> None:
        self.observed.append((machine_id, seen.kind))

    async def _interrupt(self, inference: Inference, interruption: Interruption) -> None:
        await asyncio.sleep(interruption.after_seconds)
        match interruption.what:
            case "consumer leaves":
                inference.consumer_gone()
            case "key is revoked":
                self._inbox.interrupt(KeyRevoked())
            case "gateway stops":
                self._inbox.interrupt(Aborted())

    def _do_beside(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def warm(percent_max: int = 100, requests: int = 0) -> Hedging:
    """A hedging that knows what is usual, after some requests."""
    hedging = Hedging(percent_max, 0.95)
    for _ in range(50):
        for streamed in (True, False):
            hedging.note_first_content((KIND[0], streamed), USUAL_SECONDS)
    for _ in range(requests):
        hedging.count_request()
    return hedging
