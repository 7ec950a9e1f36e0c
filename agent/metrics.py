"""The live figures of a heartbeat: memory pressure, processor share, heat (provider agent, section 6)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import psutil

from agent import macos
from domain.protocol import SystemMetrics

_THERMAL_ROOT = Path("/sys/class/thermal")


def read() -> SystemMetrics:
    """Measure now. Blocks for some milliseconds on a Mac, where it runs tools."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if sys.platform == "darwin":
        pressure = pressure_from_vm_stat(macos.ask("vm_stat"))
        thermal = thermal_from_pmset(macos.ask("pmset", "-g", "therm"))
    else:
        pressure = memory_in_use()
        thermal = thermal_from_zones(_THERMAL_ROOT)
    return SystemMetrics(memory_pressure=_share(pressure), cpu_usage=_share(load), thermal_state=thermal)


def memory_in_use() -> float:
    """The share of the memory that is not to be had, from 0 to 1. Runs no tools, so it may be asked at any time."""
    memory = psutil.virtual_memory()
    return _share(1 - memory.available / memory.total)


def pressure_from_vm_stat(report: str) -> float:
    """(active + wired + compressed) ÷ (those + inactive + speculative + free), in pages."""

    def pages(label: str) -> int:
        return macos.number(macos.value_after(report, label).rstrip("."))

    used = pages("Pages active") + pages("Pages wired down") + pages("Pages occupied by compressor")
    spare = pages("Pages inactive") + pages("Pages speculative") + pages("Pages free")
    return used / (used + spare) if used + spare else 0.0


def thermal_from_pmset(report: str) -> str:
    """The state that the processor's speed limit, in per cent, stands for; no limit is ``nominal``."""
    match = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", report)
    limit = int(match.group(1)) if match else 100
    if limit >= 100:
        return "nominal"
    return "fair" if limit >= 80 else "serious" if limit >= 50 else "critical"


def thermal_from_zones(root: Path) -> str:
    """The worst zone by its own trip points: above ``hot`` is serious, above ``critical`` is critical.

    ``nominal`` unless a sensor says otherwise; machines without sensors, such as virtual ones, are nominal.
    """
    states = [_zone_state(zone) for zone in sorted(root.glob("thermal_zone*"))]
    return next((state for state in ("critical", "serious") if state in states), "nominal")


def _zone_state(zone: Path) -> str:
    temperature = _number(zone / "temp")
    passed = set()
    for kind_file in zone.glob("trip_point_*_type"):
        limit = _number(kind_file.with_name(kind_file.name.replace("_type", "_temp")))
        if 0 < limit <= temperature:
            passed.add(_text(kind_file))
    return "critical" if "critical" in passed else "serious" if "hot" in passed else "nominal"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int:
    try:
        return int(_text(path))
    except ValueError:
        return 0


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 4)
