"""The README that travels with the weights."""


def model_card(parameters: int, seed: int, steps: int, loss: float) -> str:
    """The text of the model folder's README; the same training gives the same text."""
    return f"{parameters} {seed} {steps} {loss:.2f}"
