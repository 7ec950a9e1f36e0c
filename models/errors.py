"""What can go wrong while the tiny model is made."""

from click import ClickException


class TinyModelError(ClickException):
    """The model was not made; the output folder is as it was before. Exit code 1."""


class CorpusTooSmall(TinyModelError):
    """The Markdown found holds too little text to learn from."""


class TimeLimitPassed(TinyModelError):
    """Training was slower than `--seconds-max` allows."""


class WrittenModelDiffers(TinyModelError):
    """The files just written do not load as the model that was trained."""
