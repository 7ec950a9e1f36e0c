"""JavaScript under Node, for the tests of the JavaScript client."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import missing_service

SCRIPT = Path(__file__).with_name("sealed_client.mjs")
VERSION_MIN = 20


def run_client(task: str, **parameters: Any) -> dict[str, Any]:
    """Run one task of the JavaScript client. It needs Node of version 20 or newer, and nothing else."""
    node = shutil.which("node")
    if node is None or _version_of(node) < VERSION_MIN:
        missing_service(f"node {VERSION_MIN}")
    assert node is not None
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


def _version_of(node: str) -> int:
    shown = subprocess.run([node, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout
    return int(shown.strip().removeprefix("v").partition(".")[0])
