from __future__ import annotations

import msgspec
import pytest

from domain.dispatch import Assigned, DispatchJob, Notice, Refused, ReleaseJob, SettleJob, Waiting
from domain.requests import JobFailure
from tests.support.examples import REQUEST, snapshot

FAILURES = (JobFailure("job", "timeout", 504),)
NOTICES: list[Notice] = [
    Assigned(request_id=REQUEST, attempt=1, job_id="job", machine=snapshot()),
    Waiting(request_id=REQUEST, attempt=1, machines=3),
    Refused(request_id=REQUEST, attempt=2, reason="queue_full"),
]


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: type(notice).__name__)
def test_a_notice_arrives_as_what_it_was(notice: Notice) -> None:
    assert msgspec.json.decode(msgspec.json.encode(notice), type=Notice) == notice


@pytest.mark.parametrize(
    "job",
    [
        DispatchJob(
            request_id=REQUEST,
            attempt=1,
            account_id="ada",
            model="model",
            size_gb=1.5,
            prompt_tokens=1,
            output_tokens=2,
            failures=FAILURES,
            reply_to=REQUEST,
            deadline=1.25,
        ),
        SettleJob(
            request_id=REQUEST,
            account_id="ada",
            job_id="job",
            claimed_prompt_tokens=1,
            claimed_completion_tokens=2,
            completion_bound=3,
        ),
        ReleaseJob(request_id=REQUEST, account_id="ada", reason="failed", failures=FAILURES),
    ],
    ids=lambda job: type(job).__name__,
)
def test_a_job_holds_ids_and_sizes_and_no_text_of_a_prompt(job: DispatchJob | SettleJob | ReleaseJob) -> None:
    assert not {"prompt", "messages", "body", "content", "text"} & set(type(job).__struct_fields__)
    assert msgspec.convert(msgspec.to_builtins(job), type(job)) == job
