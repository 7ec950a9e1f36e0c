"""Facts and figures about the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agent import hardware, metrics

VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                             40000.
Pages inactive:                           20000.
Pages speculative:                        10000.
Pages wired down:                         15000.
Pages occupied by compressor:              5000.
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Apple M4 Max", ("M4", "Max")),
        ("Apple M1", ("M1", "Base")),
        ("Apple M2 Ultra", ("M2", "Ultra")),
        ("Apple M3 Pro", ("M3", "Pro")),
        ("Intel(R) Core(TM) i9", ("Unknown", "Unknown")),
        ("", ("Unknown", "Unknown")),
    ],
)
def test_chip_names_give_family_and_tier(name: str, expected: tuple[str, str]) -> None:
    assert hardware.parse_chip(name) == expected


@pytest.mark.parametrize(
    ("family", "tier", "cores", "expected"),
    [
        ("M1", "Base", 8, 68),
        ("M3", "Max", 30, 300),
        ("M3", "Max", 40, 400),
        ("M4", "Max", 40, 546),
        ("M5", "Max", 32, 460),
        ("M4", "Ultra", 80, 100),
        ("Unknown", "Unknown", 0, 100),
    ],
)
def test_bandwidth_follows_the_table(family: str, tier: str, cores: int, expected: float) -> None:
    assert hardware.bandwidth_gbs(family, tier, cores) == expected


@pytest.mark.parametrize("member", ["sppci_cores", "sppci_gpu_core_count"])
def test_gpu_facts_come_from_the_displays_report(member: str) -> None:
    report = json.dumps({"SPDisplaysDataType": [{"sppci_model": "Apple M4 Max", member: "40"}]})
    assert hardware.gpu_facts(report) == ("Apple M4 Max", 40)


@pytest.mark.parametrize("report", ["", "[]", '{"SPDisplaysDataType":[]}'])
def test_a_report_without_a_gpu_gives_nothing(report: str) -> None:
    assert hardware.gpu_facts(report) == ("", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="measures this machine")
def test_linux_facts_are_complete() -> None:
    facts = hardware.detect()
    assert facts.machine_model
    assert facts.chip_name
    assert (facts.chip_family, facts.chip_tier, facts.gpu_cores) == ("Unknown", "Unknown", 0)
    assert facts.cpu_cores.total >= 1
    assert facts.memory_available_gb == max(0, facts.memory_gb - 4)
    assert facts.memory_bandwidth_gbs > 0


def test_metrics_are_shares() -> None:
    figures = metrics.read()
    assert 0 <= figures.memory_pressure <= 1
    assert 0 <= figures.cpu_usage <= 1


def test_mac_pressure_is_the_used_share_of_the_pages() -> None:
    assert metrics.pressure_from_vm_stat(VM_STAT) == 0.6
    assert metrics.pressure_from_vm_stat("") == 0.0


@pytest.mark.parametrize(
    ("limit", "state"), [("100", "nominal"), ("99", "fair"), ("79", "serious"), ("49", "critical"), (None, "nominal")]
)
def test_mac_heat_is_the_speed_limit(limit: str | None, state: str) -> None:
    report = f"CPU_Scheduler_Limit = 100\n CPU_Speed_Limit \t= {limit}\n" if limit else "No thermal warning"
    assert metrics.thermal_from_pmset(report) == state


@pytest.mark.parametrize(("temperature", "state"), [(50_000, "nominal"), (95_000, "serious"), (110_000, "critical")])
def test_linux_heat_follows_the_trip_points(tmp_path: Path, temperature: int, state: str) -> None:
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    files = {
        "temp": temperature,
        "trip_point_0_type": "passive",
        "trip_point_0_temp": 40_000,
        "trip_point_1_type": "hot",
        "trip_point_1_temp": 90_000,
        "trip_point_2_type": "critical",
        "trip_point_2_temp": 105_000,
    }
    for name, content in files.items():
        (zone / name).write_text(f"{content}\n")
    assert metrics.thermal_from_zones(tmp_path) == state


def test_a_machine_without_sensors_is_nominal(tmp_path: Path) -> None:
    assert metrics.thermal_from_zones(tmp_path) == "nominal"
