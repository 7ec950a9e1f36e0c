"""The facts about the machine that a registration carries (provider agent, section 6)."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import msgspec
import psutil

from agent import macos
from domain.protocol import CpuCores, Hardware

_SYSTEM_RESERVE_GB = 4
_UNKNOWN_BANDWIDTH_GBS = 100.0
_MANY_GPU_CORES = 40

_BANDWIDTH_GBS = {
    ("M1", "Base"): 68, ("M1", "Pro"): 200, ("M1", "Max"): 400, ("M1", "Ultra"): 800,
    ("M2", "Base"): 100, ("M2", "Pro"): 200, ("M2", "Max"): 400, ("M2", "Ultra"): 800,
    ("M3", "Base"): 100, ("M3", "Pro"): 150, ("M3", "Max"): 300, ("M3", "Ultra"): 819,
    ("M4", "Base"): 120, ("M4", "Pro"): 273, ("M4", "Max"): 410,
    ("M5", "Base"): 153, ("M5", "Pro"): 307, ("M5", "Max"): 460,
}  # fmt: skip

# The same chip with the larger GPU has the wider memory bus.
_BANDWIDTH_MANY_CORES_GBS = {("M3", "Max"): 400, ("M4", "Max"): 546, ("M5", "Max"): 614}


def detect() -> Hardware:
    """Measure this machine; takes up to a second on a Mac, a tenth of one elsewhere."""
    return _detect_macos() if sys.platform == "darwin" else _detect_linux()


def parse_chip(name: str) -> tuple[str, str]:
    """Family and tier of an Apple chip name: ``"Apple M4 Max"`` is ``("M4", "Max")``."""
    words = name.split()
    family = next((word for word in words if len(word) == 2 and word[0] == "M" and word[1].isdigit()), "Unknown")
    if family == "Unknown":
        return "Unknown", "Unknown"
    return family, next((tier for tier in ("Pro", "Max", "Ultra") if tier in words), "Base")


def bandwidth_gbs(family: str, tier: str, gpu_cores: int) -> float:
    """GB/s of an Apple chip; 100 when the table does not know it."""
    chip = (family, tier)
    if gpu_cores >= _MANY_GPU_CORES and chip in _BANDWIDTH_MANY_CORES_GBS:
        return _BANDWIDTH_MANY_CORES_GBS[chip]
    return _BANDWIDTH_GBS.get(chip, _UNKNOWN_BANDWIDTH_GBS)


def measure_copy_bandwidth_gbs(budget_seconds: float = 0.05) -> float:
    """GB/s read plus written while copying 32 MiB again and again, the best round of the budget."""
    size = 32 * 1024 * 1024
    # A view copies straight into its buffer; the bytearray itself would first make a third copy.
    source, target = bytes(size), memoryview(bytearray(size))
    best = 0.0
    deadline = time.perf_counter() + budget_seconds
    while (begin := time.perf_counter()) < deadline:
        target[:] = source
        best = max(best, 2 * size / (time.perf_counter() - begin) / 1e9)
    return round(best, 1)


def gpu_facts(displays_json: str) -> tuple[str, int]:
    """Chip name and GPU cores from ``system_profiler SPDisplaysDataType -json``; empty and 0 when it has none."""
    try:
        displays = msgspec.json.decode(displays_json, type=dict[str, list[dict[str, object]]])
    except msgspec.DecodeError:
        return "", 0
    for display in displays.get("SPDisplaysDataType", []):
        name = str(display.get("sppci_model", ""))
        cores = str(display.get("sppci_cores") or display.get("sppci_gpu_core_count") or "")
        if name:
            return name, macos.number(cores)
    return "", 0


def _detect_macos() -> Hardware:
    chip, gpu_cores = gpu_facts(macos.ask("system_profiler", "SPDisplaysDataType", "-json"))
    if not parse_chip(chip)[0].startswith("M"):
        chip = macos.ask("sysctl", "-n", "machdep.cpu.brand_string")
    family, tier = parse_chip(chip)
    total = macos.number(macos.ask("sysctl", "-n", "hw.ncpu"))
    memory_gb = macos.number(macos.ask("sysctl", "-n", "hw.memsize")) // 2**30
    return Hardware(
        machine_model=macos.ask("sysctl", "-n", "hw.model"),
        chip_name=chip,
        chip_family=family,
        chip_tier=tier,
        memory_gb=memory_gb,
        memory_available_gb=max(0, memory_gb - _SYSTEM_RESERVE_GB),
        cpu_cores=CpuCores(
            total=total,
            performance=macos.number(macos.ask("sysctl", "-n", "hw.perflevel0.logicalcpu")) or total,
            efficiency=macos.number(macos.ask("sysctl", "-n", "hw.perflevel1.logicalcpu")),
        ),
        gpu_cores=gpu_cores,
        memory_bandwidth_gbs=bandwidth_gbs(family, tier, gpu_cores),
    )


def _detect_linux() -> Hardware:
    memory_gb = psutil.virtual_memory().total // 2**30
    cores = os.cpu_count() or 1
    return Hardware(
        machine_model=_first_line("/sys/class/dmi/id/product_name") or f"linux-{platform.machine()}",
        chip_name=_cpu_name(),
        memory_gb=memory_gb,
        memory_available_gb=max(0, memory_gb - _SYSTEM_RESERVE_GB),
        cpu_cores=CpuCores(total=cores, performance=cores),
        memory_bandwidth_gbs=measure_copy_bandwidth_gbs(),
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return ""
