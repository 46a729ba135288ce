"""The `llm` command drives a daemon with the demo model, as an OpenAI-compatible model in its own config file."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemons import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.model]

MODELS = """
- model_id: forge
  model_name: smollm2
  api_base: "{url}/v1"
  supports_schema: true
  supports_tools: true
"""
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def home(demo_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    print(f"llm {importlib.metadata.version('llm')}")
    folder = tmp_path_factory.mktemp("llm")
    (folder / "extra-openai-models.yaml").write_text(MODELS.format(url=demo_daemon.url))
    return folder


def llm(home: Path, *arguments: str) -> str:
    env = {**os.environ, "LLM_USER_PATH": str(home)}
    command = [sys.executable, "-m", "llm", "-m", "forge", "--no-log", "-o", "max_tokens", "40", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=env, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_question_streamed_and_whole(home):
    streamed = llm(home, "-o", "temperature", "0", QUESTION)
    assert "Paris" in streamed
    assert llm(home, "--no-stream", "-o", "temperature", "0", QUESTION) == streamed


def test_a_schema_is_kept(home):
    assert set(json.loads(llm(home, "--schema", "year int, big bool", "-o", "seed", "1", QUESTION))) == {"year", "big"}


def test_a_function_is_offered(home):
    """Whether it is called is the model's choice, and `llm` cannot force it; that calls arrive is tested elsewhere."""
    assert llm(home, "--functions", "def weather(city: str): return 'sunny'", "-o", "temperature", "0", QUESTION)
