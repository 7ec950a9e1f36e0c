"""Trains the tiny chat model on this project's documentation: `python -m models.train_tiny`."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.utils import value_and_grad
from mlx_lm.models.llama import Model

from models.corpus import folder_files, read_sections, repository_files
from models.errors import TimeLimitPassed
from models.host_operations import host_operations, mean_cross_entropy
from models.model_card import model_card
from models.model_folder import new_model, parameter_count, write_model_folder
from models.samples import Samples, build_samples
from models.vocabulary import train_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS_DEFAULT = 1500
TOKENS_PER_STEP = 1024
# Short rows are cheap and hold a usual conversation; the long one teaches the later positions.
ROW_TOKENS = (128,) * 7 + (1024,)
LEARNING_RATE_PEAK = 1e-2
WARM_UP_SHARE = 0.05
GRADIENT_NORM_MAX = 1.0
STEPS_PER_REPORT = 50


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=REPOSITORY / "models/darkbloom-tiny")
@click.option("--corpus", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Instead of docs/.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=STEPS_DEFAULT, show_default=True)
@click.option("--seconds-max", type=click.FloatRange(0, min_open=True), default=240.0, show_default=True)
def main(out: Path, corpus: Path | None, seed: int, steps: int, seconds_max: float) -> None:
    """Trains the tiny chat model on docs/**/*.md and README.md and writes a model folder.

    The steps bound the training, so that seed and corpus fix the result on a given machine. When they take longer
    than --seconds-max, the program fails and leaves the folder as it was.
    """
    started = time.monotonic()
    sections = read_sections(folder_files(corpus) if corpus else repository_files(REPOSITORY))
    tokenizer = train_tokenizer(f"{section.heading}\n\n{' '.join(section.sentences)}" for section in sections)
    samples = build_samples(sections, tokenizer, np.random.default_rng(seed))
    click.echo(
        f"{len(sections)} sections, {len(samples.tokens)} samples, {sum(map(len, samples.tokens))} tokens", err=True
    )

    mx.random.seed(seed)
    model = new_model()
    loss = train(model, samples, steps, np.random.default_rng(seed + 1), deadline=started + seconds_max)
    write_model_folder(out, model, tokenizer, model_card(parameter_count(model), len(sections), seed, steps, loss))
    click.echo(
        f"{out}: {parameter_count(model):,} parameters, {steps} steps, loss {loss:.3f},"
        f" {time.monotonic() - started:.0f} s"
    )


def train(model: Model, samples: Samples, steps: int, rng: np.random.Generator, deadline: float) -> float:
    """Trains the model in place; returns the mean loss (nats a token) of the last `STEPS_PER_REPORT` steps.

    Raises `TimeLimitPassed` when `time.monotonic()` passes the deadline before the last step.
    """
    optimizer = optim.AdamW(_learning_rate(steps), betas=[0.9, 0.95], weight_decay=0.05)
    gradients_of = value_and_grad(model, _loss)
    losses: list[float] = []
    with host_operations():
        for step, rows in enumerate(_batches(samples, steps, rng), start=1):
            if time.monotonic() > deadline:
                raise TimeLimitPassed(f"Only {step - 1} of {steps} steps were done in time. Raise --seconds-max.")
            loss, gradients = gradients_of(model, rows)
            optimizer.update(model, cast("Any", optim).clip_grad_norm(gradients, GRADIENT_NORM_MAX)[0])
            mx.eval(model.parameters(), optimizer.state)
            losses.append(loss.item())
            if step % STEPS_PER_REPORT == 0 or step == steps:
                click.echo(f"step {step}/{steps} loss {np.mean(losses[-STEPS_PER_REPORT:]):.3f}", err=True)
    return float(np.mean(losses[-STEPS_PER_REPORT:]))


def _batches(samples: Samples, steps: int, rng: np.random.Generator) -> Iterator[mx.array]:
    """One array (rows, tokens + 1) a step, always `TOKENS_PER_STEP` tokens to predict."""
    for step in range(steps):
        length = ROW_TOKENS[step % len(ROW_TOKENS)]
        yield mx.array(samples.rows(TOKENS_PER_STEP // length, length + 1, rng))


def _loss(model: Model, rows: mx.array) -> mx.array:
    """The mean cross entropy, in nats, of each token after the first of its row."""
    return cast("mx.array", mean_cross_entropy(model(rows[:, :-1]), rows[:, 1:]))


def _learning_rate(steps: int) -> Callable[[mx.array], mx.array]:
    """A linear rise over `WARM_UP_SHARE` of the steps, then half a cosine down to a hundredth of the peak."""
    warm_up = max(1, int(steps * WARM_UP_SHARE))
    rise = optim.linear_schedule(0.0, LEARNING_RATE_PEAK, warm_up)
    fall = optim.cosine_decay(LEARNING_RATE_PEAK, max(1, steps - warm_up), LEARNING_RATE_PEAK / 100)
    return optim.join_schedules([rise, fall], [warm_up])


if __name__ == "__main__":
    main()
