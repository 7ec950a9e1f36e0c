"""The token that links this machine to an account, if the owner has logged in (provider agent, section 4.3)."""

from __future__ import annotations

import logging
from pathlib import Path

from agent.files import tighten
from agent.log import describe

_log = logging.getLogger(__name__)


def read_auth_token(path: Path) -> str:
    """The file's content without the white space around it; empty when there is no file.

    A file that other users may read is closed to them, with a warning. A machine whose token cannot be read serves
    unlinked, with a warning.
    """
    try:
        tighten(path)
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s), so this machine is not linked to an account", path, describe(error))
        return ""
