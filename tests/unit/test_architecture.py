"""The arrows between the rooms, read from the imports themselves.

Every rule is a function from source text to what it finds wrong, so each is also shown to find something.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("domain", "adapters", "api", "agent", "projections")

Rule = Callable[[str, str], list[str]]
"""From a file's path inside of the repository and its text to what is wrong with it."""


def files_of(*rooms: str) -> Iterator[tuple[str, str]]:
    for room in rooms:
        for file in sorted((ROOT / room).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")


def imports_of(path: str, source: str) -> set[str]:
    """Every module or name that a file imports, wherever in it, as dotted names; relative ones are resolved."""
    package = list(Path(path).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _name_of(node.func) in ("__import__", "importlib.import_module"):
            found.update(part.value for part in node.args[:1] if isinstance(part, ast.Constant))
    return found


def _name_of(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name_of(node.value)}.{node.attr}"
    return ""


def is_in(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def only(*modules: str) -> Rule:
    """Nothing but the standard library and these."""
    allowed = (*sys.stdlib_module_names, *modules)

    def rule(path: str, source: str) -> list[str]:
        return [f"{path} imports {name}" for name in sorted(imports_of(path, source)) if not is_in(name, allowed)]

    return rule


def never(*modules: str) -> Rule:
    def rule(path: str, source: str) -> list[str]:
        return [f"{path} imports {name}" for name in sorted(imports_of(path, source)) if is_in(name, modules)]

    return rule


# --- what the domain may not read ------------------------------------------------------------------------------------

OUTSIDE_WORLD = (
    "asyncio",
    "glob",
    "http",
    "importlib",
    "io",
    "locale",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "platform",
    "secrets",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
)
CLOCKS = ("now", "utcnow", "today")
BUILTINS = ("open", "input", "print", "eval", "exec", "compile", "__import__", "breakpoint")
PURE_NAMES = {"random": ("Random",), "uuid": ("UUID", "uuid5")}
"""Of these modules only what does nothing by itself: a caller's own generator, ids that follow from their input."""


def pure(path: str, source: str) -> list[str]:
    """No clock, no randomness, no environment, no files."""
    found = [f"imports {name}" for name in sorted(imports_of(path, source)) if is_in(name, OUTSIDE_WORLD)]
    for name in sorted(imports_of(path, source)):
        module, _, member = name.partition(".")
        if module in PURE_NAMES and member not in PURE_NAMES[module]:
            found.append(f"imports {name}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _name_of(node.func) in BUILTINS:
            found.append(f"calls {_name_of(node.func)}")
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in CLOCKS
            and _name_of(node.value).split(".")[-1]
            in (
                "datetime",
                "date",
            )
        ):
            found.append(f"reads {_name_of(node)}")
    return [f"{path} {what}" for what in found]


# --- the rules -------------------------------------------------------------------------------------------------------

MAY_IMPORT_ADAPTERS = ("api/bootstrap.py", "api/cli.py", "api/command_line.py", "api/demo.py")


def api_reaches_adapters_through_bootstrap(path: str, source: str) -> list[str]:
    return [] if path in MAY_IMPORT_ADAPTERS else never("adapters")(path, source)


DOMAIN_IMPORTS = "the domain imports the standard library, eventsourcing, msgspec and itself"
DOMAIN_IS_PURE = "the domain reads no clock, no randomness, no environment and no files"
PROJECTIONS = "projections import the domain, psycopg, msgspec and themselves"
ADAPTERS = "adapters import neither api, agent nor projections"
AGENT = "the agent imports nothing of the coordinator"
API_BOOTSTRAP = "the api reaches adapters through bootstrap only"
API_OTHERS = "the api imports neither the agent nor tests"

RULES: dict[str, tuple[str, Rule]] = {
    DOMAIN_IMPORTS: (
        "domain",
        only("domain", "eventsourcing", "msgspec"),
    ),
    DOMAIN_IS_PURE: ("domain", pure),
    PROJECTIONS: (
        "projections",
        only("projections", "domain", "psycopg", "msgspec"),
    ),
    ADAPTERS: ("adapters", never("api", "agent", "projections")),
    AGENT: (
        "agent",
        never(
            "api",
            "projections",
            "adapters.postgres",
            "adapters.scheduler",
            "adapters.relay",
            "adapters.settings",
            "fastapi",
            "starlette",
            "eventsourcing",
            "psycopg",
            "psycopg_pool",
            "dramatiq",
        ),
    ),
    API_BOOTSTRAP: ("api", api_reaches_adapters_through_bootstrap),
    API_OTHERS: ("api", never("agent", "tests")),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_holds(name: str) -> None:
    room, rule = RULES[name]
    files = list(files_of(room))
    assert files, f"there is no room {room}"
    assert [problem for path, source in files for problem in rule(path, source)] == []


@pytest.mark.parametrize(
    ("name", "path", "source"),
    [
        (DOMAIN_IMPORTS, "domain/x.py", "import psycopg"),
        (DOMAIN_IMPORTS, "domain/x.py", "from adapters.postgres import pool"),
        (DOMAIN_IMPORTS, "domain/x.py", "from .. import adapters"),
        (DOMAIN_IMPORTS, "domain/x.py", "def f():\n    import api.app"),
        (DOMAIN_IMPORTS, "domain/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fastapi"),
        (DOMAIN_IMPORTS, "domain/x.py", "import msgspec_extras"),
        (DOMAIN_IS_PURE, "domain/x.py", "datetime.now(UTC)"),
        (
            DOMAIN_IS_PURE,
            "domain/x.py",
            "import datetime\nx = datetime.datetime.utcnow",
        ),
        (DOMAIN_IS_PURE, "domain/x.py", "date.today()"),
        (DOMAIN_IS_PURE, "domain/x.py", "import time"),
        (
            DOMAIN_IS_PURE,
            "domain/x.py",
            "from time import time",
        ),
        (
            DOMAIN_IS_PURE,
            "domain/x.py",
            "from os import environ",
        ),
        (DOMAIN_IS_PURE, "domain/x.py", "import random"),
        (
            DOMAIN_IS_PURE,
            "domain/x.py",
            "from random import choice",
        ),
        (
            DOMAIN_IS_PURE,
            "domain/x.py",
            "from uuid import uuid4",
        ),
        (DOMAIN_IS_PURE, "domain/x.py", "import secrets"),
        (DOMAIN_IS_PURE, "domain/x.py", "open('x').read()"),
        (
            PROJECTIONS,
            "projections/x.py",
            "import adapters.settings",
        ),
        (PROJECTIONS, "projections/x.py", "from api import ports"),
        (ADAPTERS, "adapters/x.py", "from api.ports import Credentials"),
        (ADAPTERS, "adapters/x.py", "import projections.runner as runner"),
        (ADAPTERS, "adapters/x/y.py", "from ...agent import session"),
        (
            ADAPTERS,
            "adapters/x.py",
            "import importlib\nimportlib.import_module('agent.session')",
        ),
        (AGENT, "agent/x.py", "from adapters.postgres.pool import connect"),
        (AGENT, "agent/x.py", "from adapters import scheduler"),
        (AGENT, "agent/x.py", "import eventsourcing.domain"),
        (AGENT, "agent/engine/x.py", "import fastapi"),
        (API_BOOTSTRAP, "api/server.py", "from adapters.settings import Settings"),
        (API_BOOTSTRAP, "api/consumer/bootstrap.py", "import adapters"),
        (API_OTHERS, "api/x.py", "from agent.session import Session"),
    ],
)
def test_the_rule_can_fail(name: str, path: str, source: str) -> None:
    assert RULES[name][1](path, source) != []


@pytest.mark.parametrize(
    ("name", "path", "source"),
    [
        (DOMAIN_IMPORTS, "domain/x.py", "import json\nfrom eventsourcing.domain import CanMutateAggregate"),
        (DOMAIN_IMPORTS, "domain/a/x.py", "from ..money import parse_usd"),
        (
            DOMAIN_IS_PURE,
            "domain/x.py",
            "from random import Random",
        ),
        (DOMAIN_IS_PURE, "domain/x.py", "unit.now"),
        (AGENT, "agent/x.py", "from adapters.crypto import box"),
        (API_BOOTSTRAP, "api/bootstrap.py", "import adapters.postgres"),
    ],
)
def test_the_rule_lets_through_what_is_allowed(name: str, path: str, source: str) -> None:
    assert RULES[name][1](path, source) == []


def test_what_the_agent_imports_leads_nowhere_near_the_coordinator() -> None:
    """The arrows hold for the whole way: the agent installs without the coordinator's packages."""
    sources = {path.removesuffix(".py").replace("/", "."): (path, source) for path, source in files_of(*ROOMS)}
    waiting = [module for module in sources if module.split(".")[0] == "agent"]
    seen: set[str] = set()
    outside: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in imports_of(*sources[module]):
            ours = next((known for known in (name, name.rpartition(".")[0]) if known in sources), None)
            if ours:
                waiting.append(ours)
            elif name.split(".")[0] not in ROOMS:
                outside[name.split(".")[0]] = module
    foreign = {"fastapi", "starlette", "eventsourcing", "psycopg", "psycopg_pool", "dramatiq", "sqlalchemy", "alembic"}
    assert "domain.protocol" in seen
    assert {name: where for name, where in outside.items() if name in foreign} == {}


def test_every_room_is_watched() -> None:
    assert {room for room, _ in RULES.values()} == set(ROOMS)
