"""What one gateway says to another that holds the socket of a machine: a sealed request there, its sealed answer back.

The answer is a stream of the machine's own frames, one a line; an empty line only says that the stream lives. A stream
that ends without a last word means that the machine is lost.
"""

from __future__ import annotations

import msgspec

from domain.protocol import InferenceAccepted, InferenceComplete, InferenceError, InferenceResponseChunk

JOBS_PATH = "/internal/machines/{session_id}/jobs"
"""POST: run a job on a machine here, answered by the stream of its frames."""

JOB_PATH = "/internal/machines/{session_id}/jobs/{job_id}"
"""DELETE: tell the machine to stop; its last word still comes in the stream."""

VIOLATIONS_PATH = "/internal/machines/{session_id}/violations"
"""POST: the machine broke the protocol in an answer to another gateway's consumer."""

KEEP_ALIVE_SECONDS = 10.0
"""A stream is never silent for longer."""

SILENCE_SECONDS_MAX = 30.0
"""After so long without a byte the other gateway is gone, whatever the network says."""

JobFrame = InferenceAccepted | InferenceResponseChunk | InferenceComplete | InferenceError

LAST_WORDS = (InferenceComplete, InferenceError)


class Violation(msgspec.Struct, frozen=True):
    """``what`` is a sentence of ours, never of the machine."""

    what: str
