"""From a job to what the batch needs of it: prompt, grammar and the way to read the answer. Makes no MLX calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.engine.constraint import Constraint, ThoughtTokens
from agent.engine.grammar import Grammar, GrammarInvalid, Grammars
from agent.engine.job import ChatJob
from agent.engine.prompts import Prompt, Prompter
from agent.engine.reading import Reading
from agent.errors import JobRefused


@dataclass(frozen=True, slots=True)
class Prepared:
    """``constraints`` has one for each choice, or none. ``grammars`` is set when log probabilities are asked for."""

    prompt: list[int]
    constraints: list[Constraint]
    reading: Reading
    grammars: Grammars | None


class Preparer:
    """Prepares the jobs of one model. Belongs to one thread, which need not be MLX's."""

    def __init__(
        self,
        prompter: Prompter,
        grammars: Callable[[], Grammars | None],
        thought_tokens: ThoughtTokens | None,
        vocabulary_size: int,
    ) -> None:
        """``grammars`` is called when the first job needs it, because it takes a moment."""
        self._prompter = prompter
        self._make_grammars = grammars
        self._grammars: Grammars | None = None
        self._thought_tokens = thought_tokens
        self._vocabulary_size = vocabulary_size

    def prepare(self, job: ChatJob) -> Prepared:
        """Render and compile.

        Raises:
            JobRefused: the chat template, the grammar compiler or the vocabulary does not take what was asked.
        """
        if any(token >= self._vocabulary_size for token, _ in job.sampling.logit_bias):
            raise JobRefused(f"logit_bias: the model's tokens end at {self._vocabulary_size - 1}")
        prompt = self._prompter.render(job)
        constraints = self._constraints(job, prompt)
        # A constraint sees a thought only where its tags are tokens; elsewhere the answer begins at once.
        opened_by = None if constraints and self._thought_tokens is None else prompt.opened_by
        reading = Reading(self._prompter.thought_tags, opened_by, job.stop, job.toolbox, prompt.tool_form)
        grammars = None if job.top_logprobs is None else self._compiler("logprobs")
        return Prepared(prompt.tokens, constraints, reading, grammars)

    def _constraints(self, job: ChatJob, prompt: Prompt) -> list[Constraint]:
        grammar = self._grammar(job)
        if grammar is None:
            return []
        opened, may_think = prompt.opened_by is not None, job.thinking is not False
        return [
            Constraint(grammar.fork(), self._thought_tokens, opened=opened, may_think=may_think)
            for _ in range(job.choices)
        ]

    def _grammar(self, job: ChatJob) -> Grammar | None:
        if job.response_schema is not None:
            try:
                return self._compiler("response_format").for_schema(job.response_schema)
            except GrammarInvalid:
                raise JobRefused("response_format: the JSON schema does not compile") from None
        if job.toolbox is not None and job.toolbox.required:
            try:
                return self._compiler("tool_choice").for_calls(job.toolbox)
            except GrammarInvalid:
                raise JobRefused("tools: the JSON schema of a tool's parameters does not compile") from None
        return None

    def _compiler(self, member: str) -> Grammars:
        if self._grammars is None:
            self._grammars = self._make_grammars()
        if self._grammars is None:
            raise JobRefused(f"{member}: not supported by this model's tokenizer")
        return self._grammars
