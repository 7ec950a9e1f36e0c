"""The agent's version, as it is printed and registered."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def agent_version() -> str:
    """Dotted numbers; ``0.0.0`` when the agent runs from a folder that was never installed."""
    try:
        return version("darkbloom")
    except PackageNotFoundError:
        return "0.0.0"
