"""Tools that other people built on the official packages, unmodified, against a coordinator and a real agent.

``make tools-on-top`` installs them into a virtual environment of their own and runs this; without one it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.machine import MODEL
from tests.support.processes import Coordinator, Key, Process

VENV = os.environ.get("DARKBLOOM_TOOLS_VENV", "")
pytestmark = pytest.mark.skipif(not VENV, reason="DARKBLOOM_TOOLS_VENV names no environment; see make tools-on-top")

QUESTION = "What is a hold?"
SECONDS_MAX = 100


@pytest.fixture
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


def run(folder: Path, *command: str, **variables: str) -> str:
    """What a program of the tools' environment prints."""
    program, *arguments = command
    done = subprocess.run(
        [str(Path(VENV) / "bin" / program), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(f"{program}: {done.stdout.strip()}")
    return done.stdout


class TestLlm:
    """``llm``, the command line for language models."""

    @pytest.fixture
    def llm(self, up: Coordinator, real_agent: Process, key: Key, tmp_path: Path) -> Iterator[Callable[..., str]]:
        model = f"- model_id: tiny\n  model_name: {MODEL}\n  api_base: {up.url}/v1\n  api_key_name: darkbloom\n"
        model += "  supports_schema: true\n"
        (tmp_path / "extra-openai-models.yaml").write_text(model)
        options = ["-m", "tiny", "--key", key.secret, "-o", "temperature", "0"]
        yield lambda *more: run(tmp_path, "llm", *options, *more, QUESTION, LLM_USER_PATH=str(tmp_path))
        up.books.require_balanced()

    def test_a_stream_says_the_same_as_a_whole_answer(self, llm: Callable[..., str]) -> None:
        whole = llm("--no-stream", "-o", "max_tokens", "24")
        assert whole.strip()
        assert llm("-o", "max_tokens", "24") == whole

    def test_it_gets_json_of_a_schema(self, llm: Callable[..., str]) -> None:
        assert isinstance(json.loads(llm("--schema", "open bool"))["open"], bool)


AGENT = """
import sys
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

url, key, model_name, question = sys.argv[1:]
provider = OpenAIProvider(base_url=url, api_key=key)
settings: Any = {"temperature": 0, "max_tokens": 300}


class Gate(BaseModel):
    open: bool


for model in (OpenAIChatModel(model_name, provider=provider), OpenAIResponsesModel(model_name, provider=provider)):
    by_tool = Agent(model, output_type=Gate, model_settings=settings).run_sync(question)
    by_format = Agent(model, output_type=NativeOutput(Gate), model_settings=settings).run_sync(question)
    assert isinstance(by_tool.output, Gate) and isinstance(by_format.output, Gate)
    with Agent(model, model_settings=settings).run_stream_sync(question) as streamed:
        text = streamed.get_output()
    assert text
    print(type(model).__name__, by_tool.output, by_format.output, len(text))
"""


def test_pydantic_ai_gets_typed_output_by_tools_and_by_formats(
    up: Coordinator, real_agent: Process, key: Key, tmp_path: Path
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    printed = run(tmp_path, "python", "agent.py", f"{up.url}/v1", key.secret, MODEL, QUESTION)
    assert [line.split()[0] for line in printed.splitlines()] == ["OpenAIChatModel", "OpenAIResponsesModel"]
    up.books.require_balanced()
