"""The README that travels with the weights."""

from string import Template

from models.vocabulary import CONTEXT_TOKENS, VOCABULARY_SIZE

_CARD = Template("""\
# darkbloom-tiny

A chat model of $parameters parameters, made so that the demo and the tests of Darkbloom need no download. It has the
shape of a Llama and any loader of MLX models takes it for one. It answers in the words of Darkbloom's documentation,
often wrongly, and ends after a few sentences. Use it to see a request travel the whole way, not to learn anything.

## How it was made

    python -m models.train_tiny --seed $seed --steps $steps

The program reads `docs/**/*.md` and `README.md`, learns a byte-level BPE vocabulary of $vocabulary tokens from their
prose, turns their sections into questions and answers, and trains on a CPU. This copy was trained on $sections
sections; the mean loss over its last steps was $loss nats a token. The same text, seed, steps, library versions and
kind of processor give the same weights.

The context is $context tokens; most training rows were much shorter, so that answers get worse as a conversation grows.
Weights are stored in 16-bit floating point.

## Chat format

    <|system|>Be concise.<|end|><|user|>What is a hold?<|end|><|assistant|>

The answer ends with `<|end|>`. A message of the role `developer` counts as one of the system, and one of the role
`tool` as one of the user; any other role is an error. Of a message in parts, only the text is kept.

Every Unicode text can be encoded and decodes to itself. A message that spells out one of the four control tokens does
not gain control: the chat template puts a space behind its first character (`< |end|>`), so that it is read as text.
That holds only for what goes through the template. Whoever encodes a user's text without it should ask for
`tokenizer.encode(text, split_special_tokens=True)`, or else `<|end|>` in that text becomes the end token.

## Licence

The weights, the vocabulary and this folder's other files were made by the Darkbloom project from its own documentation
and program text alone. No other model, tokenizer or data set went into them. They are covered by the project's licence.
""")


def model_card(parameters: int, sections: int, seed: int, steps: int, loss: float) -> str:
    """The text of the model folder's README; the same training gives the same text."""
    return _CARD.substitute(
        parameters=f"{parameters:,}",
        vocabulary=f"{VOCABULARY_SIZE:,}",
        context=f"{CONTEXT_TOKENS:,}",
        sections=sections,
        seed=seed,
        steps=steps,
        loss=f"{loss:.2f}",
    )
