"""The entry point of ``darkbloomd``. It is apart from the commands because importing them takes a while."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback from its first moment."""
    try:
        from api.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
