"""A job in the decoder: its choices, each with the text that its tokens have made so far."""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine.generation import Generation
from agent.engine.job import ChoiceEnd, Finished, Piece, TokenLogprob
from agent.engine.mlx import Detokenizer, Sequence, Token
from agent.engine.reading import AnswerReader, Part, Reading


class OpenAnswer:
    """What the choices of one job share."""

    def __init__(self, generation: Generation, choices: int) -> None:
        self.generation = generation
        self.failed = False
        self._open = choices
        self._completion_tokens = 0
        self._reasoning_tokens = 0

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its choices any more."""
        return self.failed or self.generation.cancelled

    def close(self, choice: RunningChoice) -> Finished | None:
        """Count a choice that has ended; the end of the answer when it was the last one."""
        self._open -= 1
        self._completion_tokens += choice.completion_tokens
        self._reasoning_tokens += choice.reasoning_tokens
        if self._open:
            return None
        prompt_tokens, cached_tokens = self.generation.prompt_tokens, self.generation.cached_tokens
        return Finished(prompt_tokens, self._completion_tokens, cached_tokens, self._reasoning_tokens)


@dataclass(frozen=True, slots=True)
class Ticket:
    """One choice of a job whose prompt is rendered. With a ``cache_salt`` its conversation is remembered under it."""

    answer: OpenAnswer
    choice: int
    sequence: Sequence
    reading: Reading
    cache_salt: str | None


class RunningChoice:
    """One choice in the batch."""

    def __init__(self, ticket: Ticket, detokenizer: Detokenizer) -> None:
        self.ticket = ticket
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._reader = AnswerReader(ticket.reading)
        self._logprobs: list[TokenLogprob] = []

    def advance(self, token: Token) -> tuple[list[Piece], ChoiceEnd | None]:
        """Take one token; returns what it sets free and the end of the choice, if it ends.

        Raises whatever failed in the sequence.
        """
        if token.failure is not None:
            raise token.failure
        was_thinking = self._reader.thinking
        if token.end != "stop":
            self.completion_tokens += 1
            self._detokenizer.add_token(token.id)
        if token.end is not None:
            self._detokenizer.finalize()
        parts = self._reader.feed(self._detokenizer.last_segment)
        thinking = was_thinking or self._reader.thinking
        if thinking and token.end != "stop":
            self.reasoning_tokens += 1
        if thinking:
            self._logprobs.clear()
        elif token.logprob is not None:
            self._logprobs.append(token.logprob)
        if token.end is not None and not self._reader.ended:
            parts += self._reader.flush()
        pieces = [self._piece(part) for part in parts]
        if self._reader.ended or token.end == "stop":
            return pieces, ChoiceEnd(self._reader.finish_reason, self.ticket.choice, self._reader.stop_text)
        if token.end is not None:
            return pieces, ChoiceEnd("length", self.ticket.choice)
        return pieces, None

    def _piece(self, part: Part) -> Piece:
        logprobs: tuple[TokenLogprob, ...] = ()
        if part.channel == "content":
            # The tokens of text that was held back come with it, when it is delivered.
            logprobs, self._logprobs = tuple(self._logprobs), []
        elif part.channel == "tool_call":
            self._logprobs.clear()
        return Piece(
            text=part.text,
            completion_tokens=self.completion_tokens,
            choice=self.ticket.choice,
            channel=part.channel,
            call=part.call,
            head=part.head,
            reasoning_tokens=self.reasoning_tokens,
            logprobs=logprobs,
        )
