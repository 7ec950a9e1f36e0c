"""What protects prompts on this machine: the state of the platform, and what this process did for itself.

Everything here is measured. A protection that could not be shown to be in effect is reported as absent.

Source: provider protocol, section 12.1; provider agent, section 14; attestation, section 13 (other platforms).
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from agent import macos
from agent.errors import PostureRefused

SCRUBBED_VARIABLES = (
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONIOENCODING",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "DYLD_INSERT_LIBRARIES",
    "DYLD_LIBRARY_PATH",
    "DYLD_FRAMEWORK_PATH",
)

_PR_SET_DUMPABLE = 4
_PT_DENY_ATTACH = 31
_SECURE_BOOT_VARIABLE = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@dataclass(frozen=True, slots=True)
class Hardening:
    """What this process achieved for itself, once, at its start."""

    core_dumps_disabled: bool
    env_scrubbed: bool
    anti_debug_enabled: bool


@dataclass(frozen=True, slots=True)
class Posture:
    """The platform's integrity, as it is now.

    ``sip_enabled`` is System Integrity Protection on a Mac and kernel lockdown on Linux; ``rdma_disabled`` says that no
    device can read this machine's memory from outside; ``authenticated_root`` that the system volume is sealed.
    """

    sip_enabled: bool = False
    secure_boot_enabled: bool = False
    rdma_disabled: bool = False
    authenticated_root: bool = False


def harden(environment: MutableMapping[str, str]) -> Hardening:
    """Switch core dumps off, remove loader and interpreter variables, and shut debuggers out.

    Variables are removed after the interpreter has read them: this keeps them from child processes, and no more.

    Raises:
        PostureRefused: core dumps cannot be switched off.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        raise PostureRefused("Core dumps cannot be switched off, so prompts in memory could reach the disk.") from None
    for name in SCRUBBED_VARIABLES:
        environment.pop(name, None)
    return Hardening(
        core_dumps_disabled=resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
        env_scrubbed=not any(name in environment for name in SCRUBBED_VARIABLES),
        anti_debug_enabled=_deny_debuggers(),
    )


def measure(root: Path = Path("/")) -> Posture:
    """The platform's state now; may run command line tools on a Mac. ``root`` is where Linux's files are looked up."""
    return _measure_macos() if sys.platform == "darwin" else _measure_linux(root)


def _deny_debuggers() -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        return bool(library.ptrace(_PT_DENY_ATTACH, 0, None, 0) == 0)
    if sys.platform == "linux":
        return bool(library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    return False


def _measure_macos() -> Posture:
    # On Apple silicon this report holds the boot policy; a machine without the line has proved nothing.
    boot_policy = macos.ask("system_profiler", "SPiBridgeDataType")
    # No tool means a system that knows no RDMA (provider protocol, section 12.1).
    rdma = macos.ask("rdma_ctl", "status")
    return Posture(
        sip_enabled="status: enabled" in macos.ask("csrutil", "status"),
        secure_boot_enabled=macos.value_after(boot_policy, "Secure Boot") == "Full Security",
        rdma_disabled="enabled" not in rdma.lower(),
        authenticated_root=macos.value_after(macos.ask("diskutil", "info", "/"), "Sealed") == "Yes",
    )


def _measure_linux(root: Path) -> Posture:
    return Posture(
        sip_enabled=_locked_down(_read(root / "sys/kernel/security/lockdown")),
        secure_boot_enabled=_read(root / _SECURE_BOOT_VARIABLE)[-1:] == b"\x01",
        rdma_disabled=_is_empty(root / "sys/class/infiniband"),
    )


def _locked_down(states: bytes) -> bool:
    # The kernel lists its modes and puts the active one in brackets: "none [integrity] confidentiality".
    return b"[integrity]" in states or b"[confidentiality]" in states


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _is_empty(directory: Path) -> bool:
    try:
        return not any(directory.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False
