"""The documentation says what the program is: names and defaults are compared, links resolve, examples run."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
import httpx
import msgspec
import psycopg
import pytest

from adapters.settings import Settings
from agent import cli as agent_cli
from agent import errors as agent_errors
from api import cli as coordinator_cli
from api import edge
from api.auditors import routes as auditors
from api.consumer import chat_request
from domain import adjustments, errors, events, journal, protocol, routing
from domain.eventsourced import DomainEvent
from domain.machines import MachineLinked
from tests.conftest import missing_service
from tests.support.machine import MODEL

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
TUTORIAL = DOCS / "tutorial" / "first-light.md"
PRODUCT_ROOMS = ("domain", "adapters", "api", "agent", "projections")

STEP_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0


class Block(NamedTuple):
    """A fenced block of code and the paragraph that stands before it."""

    language: str
    text: str
    before: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text()


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    before: list[str] = []
    inside: list[str] | None = None
    language = ""
    for line in page.read_text().splitlines():
        if line.startswith("```") and inside is None:
            language, inside = line[3:].strip(), []
        elif line.startswith("```"):
            found.append(Block(language, "\n".join(inside or []) + "\n", " ".join(before)))
            inside, before = None, []
        elif inside is not None:
            inside.append(line)
        else:
            before = [*before, line] if line else [*before, ""][-8:]
    assert inside is None, f"{name_of(page)} ends inside of a block of code"
    return found


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def sections(text: str, level: int) -> dict[str, str]:
    """Heading to everything below it, down to the next heading of that level or above."""
    parts = re.split(rf"^(#{{1,{level}}}) +(.+)$", text, flags=re.MULTILINE)
    return {
        parts[index + 1].strip(): parts[index + 2] for index in range(1, len(parts), 3) if len(parts[index]) == level
    }


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table, without the heads."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and lines[number + 1].startswith("|--")
        if line.startswith("|") and not line.startswith("|--") and not is_head:
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def codes(cell: str) -> list[str]:
    """What stands in back quotes."""
    return re.findall(r"`([^`]+)`", cell)


def first_codes(text: str) -> set[str]:
    """The names in the first column of all tables."""
    return {code for row in rows(text) for code in codes(row[0])}


# --- links and code --------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", heading.lower())
    return plain.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#{1,6} +(.+)$", prose(page), flags=re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_of_the_project_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{target} leads nowhere"
        assert linked.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(linked), f"{target}: there is no such heading"


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s]+)\)", prose(index))}
    assert {name_of(page) for page in DOCS.rglob("*.md") if page != index and page not in linked} == set()


def test_decisions_are_numbered_without_a_gap_and_say_what_was_rejected() -> None:
    decisions = sorted((DOCS / "decisions").glob("*.md"))
    assert [page.name[:4] for page in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
    for page in decisions:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
            "Rejected",
        ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_and_json_examples_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "json":
            json.loads(block.text)


def test_files_of_the_program_that_a_page_names_exist() -> None:
    rooms = "|".join((*PRODUCT_ROOMS, "models", "benchmarks", "tests"))
    text = " ".join(page.read_text() for page in PAGES)
    named = set(re.findall(rf"`((?:{rooms})/[\w/-]*(?:\.py)?)`", text))
    assert {path for path in named if not (ROOT / path).exists()} == set()


# --- settings and commands -------------------------------------------------------------------------------------------


def shown(default: object) -> str:
    """A default as the page writes it."""
    match default:
        case None:
            return "unset"
        case "":
            return "empty"
        case float() if default == int(default):
            return f"`{int(default)}`"
        case tuple():
            return f"`{json.dumps(list(default))}`"
    return f"`{default}`"


def test_every_setting_of_the_coordinator_is_documented_with_its_default() -> None:
    text = reference("settings").partition("\n## Logging\n")[0]
    documented = {codes(row[0])[0]: row[1] for row in rows(text)}
    assert documented == {
        f"DARKBLOOM_{name.upper()}": shown(field.default) for name, field in Settings.model_fields.items()
    }


def test_every_variable_that_the_program_reads_is_documented() -> None:
    named = re.compile(r"DARKBLOOM_[A-Z_]*[A-Z]")
    used = {
        name
        for room in PRODUCT_ROOMS
        for file in (ROOT / room).rglob("*.py")
        for name in named.findall(file.read_text())
    }
    used |= set(named.findall((ROOT / "tests" / "conftest.py").read_text()))
    assert used - first_codes(reference("settings")) == set()
    everywhere = {name for page in PAGES for name in named.findall(page.read_text())}
    assert everywhere - first_codes(reference("settings")) == set()


def commands(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    context = click.Context(command, parent, info_name=name, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for child_name, child in command.commands.items():
            yield from commands(child, child_name, context)


COMMANDS = {
    context.command_path: context
    for context in (*commands(coordinator_cli.main, "darkbloomd"), *commands(agent_cli.darkbloom, "darkbloom"))
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented_with_exactly_its_options(name: str) -> None:
    text = sections(reference("commands"), 2)[name]
    context = COMMANDS[name]
    command = context.command
    options = {option for parameter in command.get_params(context) for option in parameter.opts if option[0] == "-"}
    in_tables = {code for code in first_codes(text) if code.startswith("-")}
    inherited = {"--help"} if name.startswith("darkbloomd ") else set()  # said once, at the top
    assert in_tables | inherited == options
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            assert parameter.human_readable_name.upper() in text
        elif isinstance(parameter, click.Option) and parameter.show_default:
            assert str(parameter.default) in text
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert max(parameter.opts) in command.get_help(context)


def test_every_command_has_a_section_and_no_section_is_left_over() -> None:
    assert set(sections(reference("commands"), 2)) == set(COMMANDS)


def test_every_exit_code_of_the_agent_is_documented() -> None:
    text = sections(reference("commands"), 2)["darkbloom"]
    documented = {code for row in rows(text) for code in re.findall(r"\b\d+\b", row[0])}
    raised = {str(cls.exit_code) for cls in subclasses(agent_errors.StartError)}
    assert {"0", "130", "143"} | raised == documented


# --- the domain ------------------------------------------------------------------------------------------------------


def subclasses(cls: type[Any]) -> set[type[Any]]:
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


@pytest.mark.parametrize("cls", events.EVENT_CLASSES, ids=lambda cls: cls.TOPIC)
def test_an_event_is_described_with_exactly_its_members(cls: type[DomainEvent]) -> None:
    described = sections(reference("events"), 3)[cls.TOPIC]
    common = set(DomainEvent.__struct_fields__)
    assert first_codes(described) == set(cls.__struct_fields__) - common


def test_no_event_is_described_that_does_not_exist() -> None:
    topics = {heading for heading in sections(reference("events"), 3) if "." in heading}
    assert topics == {cls.TOPIC for cls in events.EVENT_CLASSES}
    common = sections(reference("events"), 2)["What every event carries"]
    assert first_codes(common) == set(DomainEvent.__struct_encode_fields__)


def test_the_chart_of_accounts_is_the_one_of_the_journal() -> None:
    documented = {
        row[0]: journal.AccountCode(row[1], row[2])
        for row in rows(reference("chart-of-accounts"))
        if len(row) == 4 and re.fullmatch(r"\d{4}", row[0])
    }
    assert documented == journal.CHART
    order = [(codes(row[1])[0], row[2]) for row in rows(reference("chart-of-accounts")) if len(row) == 3]
    assert order == list(journal.BUCKET_CODES.items())


def test_every_reason_of_an_adjustment_is_described_with_its_account() -> None:
    described = sections(reference("chart-of-accounts"), 2)["Adjustments"]
    table = {codes(row[0])[0]: row[1].partition(":")[0] for row in rows(described) if len(row) == 2}
    assert table == adjustments.REASON_CODES


def test_every_endpoint_of_the_auditor_is_described_with_its_parameters() -> None:
    described = sections(reference("audit-api"), 3)
    routes = {
        f"{next(iter(route.methods))} {route.path.replace(':path', '')}": route.endpoint  # type: ignore[attr-defined]
        for router in auditors.ROUTERS
        for route in router.routes
    }
    assert set(described) == {route.replace("/v1/admin/finance", "") for route in routes}
    for route, endpoint in routes.items():
        text = described[route.replace("/v1/admin/finance", "")]
        parameters = first_codes(text.partition("**Answer.**")[0])
        for name in re.findall(r'query\.\w+\("(\w+)"', inspect.getsource(endpoint)):
            assert name in parameters, f"{route}: {name}"


def messages() -> dict[str, type[msgspec.Struct]]:
    found = [*get_args(protocol.FromProvider), *get_args(protocol.FromCoordinator)]
    return {str(cls.__struct_config__.tag): cls for cls in found}


@pytest.mark.parametrize("tag", messages())
def test_a_message_of_the_provider_protocol_is_described_with_exactly_its_members(tag: str) -> None:
    described = sections(reference("provider-protocol"), 3)[tag]
    assert first_codes(described) == set(messages()[tag].__struct_encode_fields__)


def test_parts_of_messages_are_described_by_name() -> None:
    text = reference("provider-protocol")
    parts = (protocol.Hardware, protocol.OfferedModel, protocol.PrivacyCapabilities, protocol.Slot)
    for part in (*parts, protocol.BackendCapacity, protocol.SystemMetrics):
        for member in part.__struct_fields__:
            assert f"`{member}`" in text, f"{part.__name__}.{member}"


def test_every_reason_why_a_machine_gets_no_work_has_advice() -> None:
    page = (DOCS / "how-to" / "find-out-why-a-machine-gets-no-work.md").read_text()
    assert [tuple(row[:2]) for row in rows(page)] == [(reason.value, reason.says) for reason in routing.Reason]


def test_every_reason_why_an_attempt_failed_is_described() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "api" / "consumer").glob("*.py")))
    reasons = set(re.findall(r'(?:AttemptFailed\(|_violation\("[^"]+", |JobFailure\(job_id, )"(\w+)"', sources))
    row = next(row for row in rows(reference("events")) if "never a machine's own text" in row[1])
    assert set(codes(row[1])) == reasons


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_every_error_is_in_the_table() -> None:
    text = sections(reference("http-api"), 2)["Errors"]
    table = {(row[0], codes(row[1])[0], codes(row[2])[0]) for row in rows(text)}
    raised = subclasses(errors.DarkbloomError)
    assert {(str(cls.http_status), cls.type, cls.code or cls.type) for cls in raised} == table


def test_every_header_that_browsers_may_read_is_described() -> None:
    for header in edge.EXPOSED_HEADERS.split(", "):
        assert f"`{header}`" in reference("http-api"), header


def test_members_that_are_refused_by_name_are_refused_by_the_gateway() -> None:
    text = sections(reference("http-api"), 3)["Members that are refused by name"]
    valid = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    refusals = {name for name, check in chat_request._CHECKS.items() if check.__qualname__.startswith("only.")}
    assert {member for row in rows(text) for member in codes(row[0])} == refusals
    for row in rows(text):
        neutral = [json.loads(value.strip("`")) for value in row[1].split(", or ")]
        for member in codes(row[0]):
            for value in (*neutral, None):
                chat_request.parse_chat(valid | {member: value})
            with pytest.raises(errors.InvalidRequest) as refused:
                chat_request.parse_chat(valid | {member: ["something"]})
            assert refused.value.param == member


def test_members_that_are_ignored_do_not_reach_a_machine() -> None:
    text = sections(reference("http-api"), 3)["Members that are ignored"]
    for member in codes(text.partition("stay at the gateway")[0]):
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], member: None}
        assert member not in json.loads(chat_request.body_for_machine(chat_request.parse_chat(body), 16, "5a" * 32))


# --- packages and tables ---------------------------------------------------------------------------------------------


def package_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;! ]", requirement)[0].lower() for requirement in requirements}


@pytest.mark.parametrize(
    ("heading", "extra"),
    [("Both sides", ""), ("The coordinator", "coordinator"), ("The agent", "agent"), ("Development", "dev")],
)
def test_the_dependencies_are_those_of_the_project(heading: str, extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    page = (DOCS / "explanation" / "dependencies.md").read_text()
    table = list(rows(sections(page, 2)[heading]))
    assert {codes(row[0])[0] for row in table} == package_names(wanted)
    assert all(all(row) and len(row) == 4 for row in table)


def test_every_table_and_column_is_described(database: str) -> None:
    found: dict[str, set[str]] = {}
    with psycopg.connect(database) as connection:
        for table, column in connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        ):
            found.setdefault(table, set()).add(column)
    del found["alembic_version"]
    described = sections(reference("read-models"), 3)
    assert {heading: first_codes(text) for heading, text in described.items()} == found


# --- the tutorial, run -----------------------------------------------------------------------------------------------


class Lines:
    """The lines that a process prints, read without ever blocking for longer than wanted."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def until(self, is_last: Callable[[str], bool]) -> list[str]:
        """All lines up to the one that is looked for, which comes last."""
        deadline = time.monotonic() + STEP_SECONDS_MAX
        seen: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"{self._process.args!r} did not get there:\n" + "\n".join(seen)
            seen.append(line)
            if is_last(line):
                return seen

    def closed(self, seconds: float) -> bool:
        """Whether everyone who could print has ended, at the latest after so many seconds."""
        self._reader.join(seconds)
        return not self._reader.is_alive()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


class Terminal:
    """A shell in which the blocks of the tutorial run one after the other, background jobs included."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines = Lines(self._process)

    def run(self, commands: str) -> str:
        """Run some lines; returns what they printed. Fails when the last of them does."""
        assert self._process.stdin is not None
        self._process.stdin.write(f'{commands}\necho "done: $?"\n')
        self._process.stdin.flush()
        printed = self._lines.until(lambda line: line.startswith("done: "))
        assert printed[-1] == "done: 0", f"{commands}\nended like this:\n" + "\n".join(printed)
        return "\n".join(printed[:-1])

    def close(self) -> None:
        """End the shell and everything that was started in it."""
        assert self._process.stdin is not None
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)
            if self._lines.closed(STOP_SECONDS_MAX):
                break
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(STOP_SECONDS_MAX)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's environment whose home is a temporary folder, with the commands on its path."""
    (tmp_path / "home").mkdir(mode=0o700)
    dropped = ("DARKBLOOM_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "default",
    }


@pytest.fixture
def coordinator_url(tmp_path: Path, environment: dict[str, str]) -> Generator[str, None, None]:
    """The tutorial's first terminal: ``darkbloomd up`` with a free port in place of 8080."""
    assert any(block.text.endswith("\ndarkbloomd up\n") for block in blocks(TUTORIAL))
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            ["darkbloomd", "up"],
            env=environment | {"DARKBLOOM_PORT": "0"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    lines = Lines(process)
    try:
        ready = lines.until(lambda line: "is ready on" in line)[-1]
        url = re.search(r"http://[\w.:]+\d", ready)
        assert url is not None
        assert f"{ready.replace(url[0], 'http://127.0.0.1:8080')}\n" in [block.text for block in blocks(TUTORIAL)]
        yield url[0]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(STOP_SECONDS_MAX)
        finally:
            process.kill()  # does nothing once it has ended
            process.wait()
            lines.closed(STOP_SECONDS_MAX)
    assert code == 0


def test_the_tutorial_does_what_it_says(tmp_path: Path, environment: dict[str, str], coordinator_url: str) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    if not (ROOT / "models" / MODEL / "config.json").is_file():
        pytest.fail("the tiny model is missing; make it with 'make tiny-model'")
    terminal = Terminal(tmp_path, environment)
    printed: dict[str, str] = {}
    try:
        for block in blocks(TUTORIAL):
            if block.language == "python":
                saved_as = re.search(r"`(\w+\.py)`:\s*$", block.before)
                assert saved_as is not None, "a Python example follows 'Put this into `name.py`:'"
                (tmp_path / saved_as[1]).write_text(block.text)
            elif block.language == "sh" and not is_first_terminal(block):
                printed[block.text] = terminal.run(second_terminal(block.text, coordinator_url))
                if "darkbloom serve" in block.text:
                    wait_for_line(tmp_path / "agent.log", "status online; serving")
    finally:
        terminal.close()

    asked = printed["python ask.py\n"].splitlines()
    usage = re.fullmatch(r"(\d+) prompt tokens, (\d+) completion tokens", asked[-2])
    assert usage is not None
    assert asked[-1] == "4.999900 USD left"
    assert printed["python books.py\n"] == output_after("python books.py").rstrip("\n")
    earned = next(text for command, text in printed.items() if "--account acct_studio) python" in command)
    assert earned.splitlines()[-1] == output_after("--account acct_studio) python").splitlines()[-1]
    assert normal(printed["cat agent.log\n"]) == normal(output_after("cat agent.log"))


PROVIDER_TUTORIAL = DOCS / "tutorial" / "provider.md"


def test_the_tutorial_for_providers_does_what_it_says(
    tmp_path: Path, environment: dict[str, str], coordinator_url: str
) -> None:
    """Three commands on the machine with a real agent, and a person at the page."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    terminal = Terminal(tmp_path, environment)
    printed: dict[str, str] = {}
    try:
        for block in (block for block in blocks(PROVIDER_TUTORIAL) if block.language == "sh"):
            commands = second_terminal(block.text, coordinator_url)
            if "darkbloom login" in commands:
                terminal.run(f"{commands.strip()} > login.log &")
                account_id = link_at_the_page(tmp_path, coordinator_url)
                commands = "wait %1 && cat login.log"
            printed[block.text] = terminal.run(commands)
            if "darkbloom serve" in commands:
                wait_for_line(tmp_path / "agent.log", "status online; serving")
    finally:
        terminal.close()

    login, *_, logout = printed.values()
    shown = "".join(block.text for block in blocks(PROVIDER_TUTORIAL) if block.language == "text")
    for line in (*login.splitlines(), logout):
        normal_line = re.sub(r"[A-Z2-9]{4}-[A-Z2-9]{4}", "K7QM-3XZP", line)
        assert f"{normal_line.replace(coordinator_url, 'http://127.0.0.1:8080')}\n" in shown
    with psycopg.connect((tmp_path / "home" / ".darkbloom" / "coordinator" / "dsn").read_text()) as connection:
        linked = connection.execute(
            "SELECT convert_from(state, 'UTF8')::jsonb ->> 'account_id' FROM events WHERE topic = %s",
            (MachineLinked.TOPIC,),
        ).fetchall()
        left = connection.execute("SELECT label FROM provider_tokens WHERE revoked_at IS NULL").fetchall()
    assert (linked, left) == ([(account_id,)], [])


def link_at_the_page(folder: Path, url: str) -> str:
    """What the tutorial's reader does in the browser; returns the account that the machine is linked to."""
    wait_for_line(folder / "login.log", "Waiting")
    code = re.search(r"enter the code (\S+)", (folder / "login.log").read_text())
    assert code is not None
    email = "ada@example.com"
    with httpx.Client(base_url=url) as browser:
        assert 'action="/link/sign-in"' in browser.get("/link").text
        page = browser.post("/link/sign-in", data={"code": code[1].lower().replace("-", " "), "email": email})
        challenge = re.search(r'name="challenge" value="(\w+)"', page.text)
        mail = re.search(rf"mail to {email}: Your Darkbloom sign-in code: (\d+)", (folder / "up.log").read_text())
        assert challenge is not None
        assert mail is not None
        form = {"code": code[1], "email": email, "challenge": challenge[1], "sign_in_code": mail[1]}
        assert "The machine is linked" in browser.post("/link/approve", data=form).text
    with psycopg.connect((folder / "home" / ".darkbloom" / "coordinator" / "dsn").read_text()) as connection:
        found = connection.execute("SELECT account_id FROM personal_details WHERE email = %s", (email,)).fetchone()
    assert found is not None
    return str(found[0])


AUDIT_TUTORIAL = DOCS / "tutorial" / "audit.md"


@pytest.fixture
def audit_terminal(
    tmp_path: Path, environment: dict[str, str], postgres_server: str
) -> Generator[Terminal, None, None]:
    terminal = Terminal(tmp_path, environment)
    try:
        yield terminal
    finally:
        terminal.close()
        with psycopg.connect(postgres_server, autocommit=True) as server:
            for name in ("books", "copy"):
                server.execute(f'DROP DATABASE IF EXISTS "{own_database(tmp_path, name)}" WITH (FORCE)')


def own_database(tmp_path: Path, name: str) -> str:
    """A database of this run alone, in place of the page's."""
    return f"darkbloom_{name}_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"


def test_the_tutorial_of_an_audit_does_what_it_says(
    tmp_path: Path, audit_terminal: Terminal, postgres_server: str
) -> None:
    if any(shutil.which(program) is None for program in ("createdb", "dropdb", "pg_dump", "pg_restore")):
        missing_service("PostgreSQL's client programs")
    names = {f"darkbloom_{name}": own_database(tmp_path, name) for name in ("books", "copy")}
    names |= {"postgresql://postgres@127.0.0.1:5432": postgres_server.rpartition("/")[0]}
    printed: dict[str, str] = {}
    for block in blocks(AUDIT_TUTORIAL):
        if block.language == "sh":
            commands = block.text
            for name, own in names.items():
                commands = commands.replace(name, own)
            printed[block.text] = audit_terminal.run(f"set -e\n{commands}set +e")

    balance = printed['darkbloomd audit trial-balance --at "$TUESDAY" --from-events\n']
    shown = next(block.text for block in blocks(AUDIT_TUTORIAL) if block.language == "text")
    assert without_instants(balance) == without_instants(shown)
    position = re.search(r"position (\d+)", balance)
    assert position is not None
    assert int(position[1]) <= int(printed["sed -n 2p yesterday.checkpoint\n"])
    *_, computed, trailer = next(text for command, text in printed.items() if "sha256sum" in command).splitlines()
    assert json.loads(trailer.removeprefix("# "))["trailer"]["sha256"] == computed.split()[0]


def without_instants(text: str) -> list[str]:
    return [re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", line.rstrip()) for line in text.splitlines()]


def is_first_terminal(block: Block) -> bool:
    """Blocks that are not for the second terminal: the demonstration, and the coordinator, which runs already."""
    return "make demo" in block.text or "darkbloomd up" in block.text


def second_terminal(commands: str, url: str) -> str:
    """The commands with this test's address, in the environment that is active already."""
    kept = [line for line in commands.splitlines() if line != ". .venv/bin/activate"]
    return "\n".join(kept).replace("http://127.0.0.1:8080", url)


def output_after(command: str) -> str:
    """The output that the tutorial shows for a command."""
    found = blocks(TUTORIAL)
    at = next(index for index, block in enumerate(found) if block.language == "sh" and command in block.text)
    assert found[at + 1].language == "text"
    return found[at + 1].text


def wait_for_line(file: Path, text: str) -> None:
    deadline = time.monotonic() + STEP_SECONDS_MAX
    while text not in (log := file.read_text() if file.exists() else ""):
        assert time.monotonic() < deadline, f"{text!r} did not come:\n{log}"
        time.sleep(0.02)


def normal(log: str) -> list[str]:
    """An agent's log without what differs from run to run: numbers, the name of the chip, the kind of weights, and the
    moment before the first challenge, which may pass unseen."""
    before_the_challenge = ("no attestation challenge", "status online, but something is in the way")
    lines = [line for line in log.splitlines() if not any(words in line for words in before_the_challenge)]
    return [re.sub(r'\d+(\.\d+)*|"[^"]*"|\w+(?=, context)', "#", line) for line in lines]
