"""Holds one choice to its grammar, and leaves its thoughts free."""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine.grammar import Grammar


@dataclass(frozen=True, slots=True)
class ThoughtTokens:
    """The tokens of a model's thought tags; a thought begins with ``start`` and ends after all of ``end``."""

    start: int
    end: tuple[int, ...]


class Constraint:
    """Follows the tokens of one choice.

    A model that thinks may do so before it is held to the grammar: when the prompt has opened a thought, or as its
    first token. An answer does not end inside of a thought.
    """

    def __init__(
        self, grammar: Grammar, thoughts: ThoughtTokens | None, *, opened: bool = False, may_think: bool = True
    ) -> None:
        self._grammar = grammar
        self._thoughts = thoughts
        self._thinking = opened and thoughts is not None
        self._may_think = may_think and not opened and thoughts is not None
        self._tail: list[int] = []

    def take(self, token: int) -> None:
        """Go on by one token. Raises GrammarBroken."""
        first, self._may_think = self._may_think, False
        if self._thoughts is not None and self._thinking:
            self._tail = [*self._tail, token][-len(self._thoughts.end) :]
            self._thinking = tuple(self._tail) != self._thoughts.end
        elif self._thoughts is not None and first and token == self._thoughts.start:
            self._thinking = True
        else:
            self._grammar.take(token)

    def allowed(self) -> bytes | None:
        """One bit for each token that may come next, the lowest of each byte first; None inside of a thought, where
        everything may come but an end token. Raises GrammarBroken."""
        if self._thinking:
            return None
        allowed = self._grammar.allowed()
        if self._thoughts is not None and self._may_think:
            return _with_bit(allowed, self._thoughts.start)
        return allowed


def _with_bit(mask: bytes, token: int) -> bytes:
    bits = bytearray(mask)
    bits[token // 8] |= 1 << token % 8
    return bytes(bits)
