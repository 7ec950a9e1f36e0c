"""JavaScript under Node, for the tests of the JavaScript client."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("sealed_client.mjs")
VERSION_MIN = 20


def run_client(task: str, **parameters: Any) -> dict[str, Any]:
    """Run one task of the JavaScript client. Skips the test where there is no Node of version 20 or newer."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on this machine")
    shown = subprocess.run([node, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout
    if int(shown.strip().removeprefix("v").partition(".")[0]) < VERSION_MIN:
        pytest.skip(f"node is {shown.strip()}, and the client needs {VERSION_MIN}")
    done = subprocess.run(
        [node, str(SCRIPT)],
        check=False,
        input=json.dumps({"task": task, **parameters}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
