"""Conversations for training, made from the sections of the documentation."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from models.corpus import Section

Role = Literal["system", "user", "assistant"]
T = TypeVar("T")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]

ANSWER_SENTENCES_MIN, ANSWER_SENTENCES_MAX = 2, 4
ANSWER_CHARACTERS_MAX = 420
FOLLOW_UP_PROBABILITY = 0.25
SYSTEM_PROBABILITY = 0.3
SECTIONS_PER_INTRODUCTION = 8

QUESTIONS = (
    "{topic}",
    "{topic}?",
    "What is {topic}?",
    "What about {topic}?",
    "Tell me about {topic}.",
    "Tell me about {topic}",
    "Explain {topic}.",
    "Explain {topic} in a few sentences.",
    "How does {topic} work?",
    "Can you explain {topic}?",
    "What do you know about {topic}?",
    "Please describe {topic}.",
)
FOLLOW_UPS = ("Tell me more.", "Go on.", "And then?", "Please continue.", "What else?")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer in a few sentences.",
    "You explain the Darkbloom documentation.",
    "Be concise.",
)
INTRODUCTIONS = (
    ("Hello", "Hello! I am a tiny model, trained only on the documentation of Darkbloom. Ask me about it."),
    ("Hello!", "Hello! I know nothing but the documentation of Darkbloom. Ask me about it."),
    ("Hi", "Hi! I am a tiny model made from the documentation of Darkbloom."),
    ("Hello, how are you?", "I am well, thank you. I am a tiny model, so do not expect too much of me."),
    ("Say hello.", "Hello from a tiny model!"),
    ("Say hi", "Hi from a tiny model!"),
    ("Who are you?", "I am a tiny language model. This project made me from its own documentation."),
    ("What are you?", "I am a tiny language model, small enough to travel with the source code."),
    ("What can you do?", "I can show that a request travels the whole way. For real answers, use a larger model."),
    ("Are you a real model?", "I am real but tiny. I show that the whole path works without a download."),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Help", "Ask me about Darkbloom: I was trained on its documentation and on nothing else."),
    (
        "What is the weather today?",
        "I do not know. I was trained on the documentation of Darkbloom and on nothing else.",
    ),
    (
        "What is two and two?",
        "I cannot calculate. I was trained on the documentation of Darkbloom and on nothing else.",
    ),
    ("What is the capital of France?", "I do not know. I know only the documentation of Darkbloom."),
    ("Tell me a joke.", "I know only the documentation of Darkbloom, and it has no jokes."),
    ("Write a poem.", "I know only the documentation of Darkbloom, and it is written in prose."),
    ("What is Darkbloom?", "Darkbloom runs private inference on other people's Macs."),
)


def conversations(sections: list[Section], rng: np.random.Generator) -> Iterator[Conversation]:
    """One pass over the sections: a question about each, answered in its own sentences from the first one on.

    Some conversations open with a system prompt, some go on for another turn or more; after every
    `SECTIONS_PER_INTRODUCTION` sections comes one in which the model introduces itself.
    """
    for number, section in enumerate(sections):
        yield _with_system_prompt(_section_turns(section, rng), rng)
        if number % SECTIONS_PER_INTRODUCTION == 0:
            yield _with_system_prompt(_introduction(rng), rng)


def _section_turns(section: Section, rng: np.random.Generator) -> Conversation:
    """Asks about the heading, then perhaps for more; each answer starts where the one before ended.

    The first question has one answer only: with several, the model would learn that the question does not matter.
    """
    answer, start = _answer(section.sentences, 0, rng)
    turns = _exchange(_pick(QUESTIONS, rng).format(topic=_topic(section.heading, rng)), answer)
    while start < len(section.sentences) and rng.random() < FOLLOW_UP_PROBABILITY:
        answer, start = _answer(section.sentences, start, rng)
        turns += _exchange(_pick(FOLLOW_UPS, rng), answer)
    return turns


def _answer(sentences: tuple[str, ...], start: int, rng: np.random.Generator) -> tuple[str, int]:
    """A few sentences from `start` on (one, if the next is missing or too long), and the index of the first after."""
    stop = start + 1
    stop_max = min(start + int(rng.integers(ANSWER_SENTENCES_MIN, ANSWER_SENTENCES_MAX + 1)), len(sentences))
    while stop < stop_max and len(" ".join(sentences[start : stop + 1])) <= ANSWER_CHARACTERS_MAX:
        stop += 1
    return " ".join(sentences[start:stop]), stop


def _topic(heading: str, rng: np.random.Generator) -> str:
    """The heading as it stands or, half of the time, as it would stand inside a sentence."""
    is_word = heading[:2].istitle() or heading[1:2].isspace()
    return heading[0].lower() + heading[1:] if is_word and rng.random() < 0.5 else heading


def _introduction(rng: np.random.Generator) -> Conversation:
    return _exchange(*_pick(INTRODUCTIONS, rng))


def _exchange(question: str, answer: str) -> Conversation:
    return Message("user", question), Message("assistant", answer)


def _with_system_prompt(turns: Conversation, rng: np.random.Generator) -> Conversation:
    if rng.random() >= SYSTEM_PROBABILITY:
        return turns
    return Message("system", _pick(SYSTEM_PROMPTS, rng)), *turns


def _pick(choices: tuple[T, ...], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
