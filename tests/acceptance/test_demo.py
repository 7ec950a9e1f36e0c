"""``darkbloomd demo``, as ``make demo`` runs it."""

from __future__ import annotations

import signal
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import psutil
import pytest

from api import command
from tests.support.processes import Process, darkbloomd, eventually


def _descendants(process: Process) -> list[psutil.Process]:
    return psutil.Process(process.popen.pid).children(recursive=True)


def test_the_demo_shows_a_paid_answer_and_balanced_books(tmp_path: Path, tiny_model: Path) -> None:
    demo = Process(
        "demo", darkbloomd("demo", "--prompt", "What is a claim?", "--model-path", str(tiny_model)), tmp_path
    )
    seen: set[psutil.Process] = set()

    def finished() -> bool:
        if demo.popen.poll() is None:
            seen.update(_descendants(demo))
            return False
        return True

    eventually(finished, "the demo to end")
    shown = demo.log()
    assert demo.popen.returncode == 0, shown
    assert "You:     What is a claim?" in shown
    story = ["HoldPlaced", "RequestAdmitted", "JobDispatched", "JobCompleted", "RequestSettled", "HoldCaptured"]
    places = [shown.index(f" {event} ") for event in [*story, "EarningCredited", "JournalEntryPosted"]]
    assert places == sorted(places)
    assert "Balance before: 5.000000 USD" in shown
    assert "Balance after: 4.999" in shown
    assert "The machine earned 0.000" in shown
    assert "difference 0" in shown
    assert len(seen) >= 3
    assert [child for child in seen if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, tiny_model: Path, signum: signal.Signals) -> None:
    demo = Process("demo", darkbloomd("demo", "--model-path", str(tiny_model)), tmp_path)
    started = eventually(
        lambda: children if len(children := _descendants(demo)) >= 3 else None, "the coordinator and its database"
    )
    demo.popen.send_signal(signum)
    assert demo.popen.wait(60) == 130
    assert [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert "Traceback" not in demo.log()


def test_an_interruption_while_the_program_loads_ends_it_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "api.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "api.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 130
    assert capfd.readouterr() == ("", "")


def test_a_demo_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    demo = Process("demo", darkbloomd("demo", "--model-path", str(tmp_path)), tmp_path)
    assert demo.popen.wait(60) == 1
    assert "is not a model folder" in demo.log()
