"""Protections are reported only when they were found in effect."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agent import macos, posture
from agent.errors import PostureRefused

SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def put(root: Path, path: str, content: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)


class TestLinux:
    def test_an_empty_system_proves_nothing_but_the_absence_of_rdma(self, tmp_path: Path) -> None:
        assert posture._measure_linux(tmp_path) == posture.Posture(rdma_disabled=True)

    @pytest.mark.parametrize(
        ("states", "locked"),
        [
            (b"[none] integrity confidentiality\n", False),
            (b"none [integrity] confidentiality\n", True),
            (b"none integrity [confidentiality]\n", True),
            (b"", False),
        ],
    )
    def test_kernel_lockdown_counts_as_integrity(self, tmp_path: Path, states: bytes, locked: bool) -> None:
        put(tmp_path, "sys/kernel/security/lockdown", states)
        assert posture._measure_linux(tmp_path).sip_enabled is locked

    @pytest.mark.parametrize(
        ("value", "enabled"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\x00", False), (b"", False)]
    )
    def test_secure_boot_is_the_last_byte_of_its_variable(self, tmp_path: Path, value: bytes, enabled: bool) -> None:
        put(tmp_path, SECURE_BOOT, value)
        assert posture._measure_linux(tmp_path).secure_boot_enabled is enabled

    def test_a_present_rdma_device_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
        assert posture._measure_linux(tmp_path).rdma_disabled is False


class TestMacos:
    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            ({}, posture.Posture(rdma_disabled=True)),
            (
                {
                    "csrutil": "System Integrity Protection status: enabled.",
                    "system_profiler": "Boot Policy:\n      Secure Boot: Full Security\n",
                    "rdma_ctl": "disabled",
                    "diskutil": "   Sealed:   Yes\n",
                },
                posture.Posture(True, True, True, True),
            ),
            (
                {
                    "csrutil": "System Integrity Protection status: disabled.",
                    "system_profiler": "      Secure Boot: Reduced Security\n",
                    "rdma_ctl": "enabled",
                    "diskutil": "   Sealed:   Broken\n",
                },
                posture.Posture(),
            ),
        ],
    )
    def test_each_tool_decides_its_own_protection(
        self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], expected: posture.Posture
    ) -> None:
        monkeypatch.setattr(macos, "ask", lambda *command, **_: answers.get(command[0], ""))
        assert posture._measure_macos() == expected

    def test_a_missing_tool_says_nothing(self) -> None:
        assert macos.ask("a-tool-that-does-not-exist") == ""


class TestHardening:
    def test_dangerous_variables_are_removed_and_others_kept(self) -> None:
        environment = dict.fromkeys(posture.SCRUBBED_VARIABLES, "x") | {"HOME": "/root"}
        code = (
            "import json, sys; from agent.posture import harden;"
            f"environment = {environment!r};"
            "achieved = harden(environment);"
            "print(json.dumps([environment, achieved.env_scrubbed, achieved.core_dumps_disabled]))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == '[{"HOME": "/root"}, true, true]'

    @pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's own answer")
    def test_debuggers_are_denied_by_the_kernel(self) -> None:
        code = (
            "import ctypes; from agent.posture import harden;"
            "achieved = harden({});"
            "print(achieved.anti_debug_enabled, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "True 0"

    def test_core_dumps_that_stay_on_refuse_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(resource, "setrlimit", refuse)
        with pytest.raises(PostureRefused) as caught:
            posture.harden({})
        assert caught.value.exit_code == 6
