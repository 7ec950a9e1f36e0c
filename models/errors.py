"""What can go wrong while the tiny model is made."""

from click import ClickException


class TinyModelError(ClickException):
    """The model was not made; the output folder is as it was before. Exit code 1."""


class CorpusTooSmallError(TinyModelError):
    """The Markdown found holds too little text to learn from."""


class TimeLimitError(TinyModelError):
    """Training was slower than `--seconds-max` allows."""


class WrittenModelError(TinyModelError):
    """The files on disk do not load as the model that was trained."""
