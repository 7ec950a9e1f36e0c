"""The agent installs and runs with its own few packages."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import agent

ALLOWED = {
    "agent",
    "adapters.crypto",
    "click",
    "cryptography",
    "domain.protocol",
    "llguidance",
    "mlx",
    "mlx_lm",
    "msgspec",
    "nacl",
    "psutil",
    "websockets",
}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_allowed(name: str) -> bool:
    prefixes = {".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)}
    return name.split(".", maxsplit=1)[0] in sys.stdlib_module_names or bool(prefixes & ALLOWED)


def test_the_agent_imports_nothing_beyond_its_packages() -> None:
    root = Path(agent.__file__).parent
    strangers = {
        f"{file.relative_to(root)}: {name}"
        for file in root.rglob("*.py")
        for name in imported(file)
        if not is_allowed(name)
    }
    assert strangers == set()


def test_only_the_seam_imports_mlx() -> None:
    root = Path(agent.__file__).parent
    users = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if any(name.split(".")[0] in ("mlx", "mlx_lm") for name in imported(file))
    }
    assert users == {"engine/mlx.py", "engine/sampling.py", "testing/tiny_model.py"}
