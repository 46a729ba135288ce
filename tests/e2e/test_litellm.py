"""LiteLLM drives a daemon with the demo model, in a virtual environment of its own: it wants an older openai."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from daemons import Daemon

INSTALL_TIMEOUT_S = 240  # half a minute where nothing else runs; once, for the folder is kept
pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(INSTALL_TIMEOUT_S + 100)]

SCRIPT = """
import importlib.metadata, json, sys
import litellm

url = sys.argv[1]
litellm.suppress_debug_info = True
asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
ways = {
    "openai": {"model": "openai/smollm2", "api_base": url + "/v1", "api_key": "any"},
    "anthropic": {"model": "anthropic/smollm2", "api_base": url, "api_key": "any"},
    "ollama": {"model": "ollama_chat/smollm2", "api_base": url},
}
parameters = {"type": "object", "properties": {"city": {"enum": ["Paris", "Lyon"]}}, "required": ["city"],
              "additionalProperties": False}
tool = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": parameters}}
schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"],
          "additionalProperties": False}
said = {"version": importlib.metadata.version("litellm"), "beside": importlib.metadata.version("openai")}
for name, way in ways.items():
    whole = litellm.completion(**way, **asked, max_tokens=12).choices[0].message.content
    chunks = litellm.completion(**way, **asked, max_tokens=12, stream=True)
    said[name] = [whole, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)]
openai = ways["openai"] | asked
call = litellm.completion(**openai, max_tokens=60, tools=[tool], tool_choice="required", parallel_tool_calls=False)
said["call"] = json.loads(call.choices[0].message.tool_calls[0].function.arguments)
form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
kept = litellm.completion(**openai, max_tokens=40, response_format=form)
said["schema"] = json.loads(kept.choices[0].message.content)
found = litellm.completion(**openai, max_tokens=2, logprobs=True, top_logprobs=1).choices[0].logprobs.content
said["logprobs"] = [each.logprob for each in found]
vectors = litellm.embedding(model="openai/embedder", api_base=url + "/v1", api_key="any", input=["the fox"],
                            encoding_format="float")
said["dimensions"] = len(vectors.data[0]["embedding"])
stream = litellm.completion(**ways["openai"] | {"model": "openai/slow"}, messages=[{"role": "user", "content":
                            "word " * 2000}], stream=True)
next(iter(stream))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of a virtual environment with LiteLLM, made once and kept."""
    folder = (
        Path(platformdirs.user_cache_dir("forgellm-tests")) / f"litellm-{sys.version_info[0]}.{sys.version_info[1]}"
    )
    found = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [
            found,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "litellm>=1.80",
            "mcp",
        ]  # mcp: for tools
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=True)
        except subprocess.SubprocessError as error:
            pytest.skip(f"pip cannot install litellm here: {getattr(error, 'stderr', None) or error}")
        (folder / "done").touch()
    return found


def test_litellm_speaks_three_dialects_with_it(python: Path, demo_daemon: Daemon) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would look for prices on GitHub
    command = [python, "-c", SCRIPT, demo_daemon.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"litellm {said['version']}, openai {said['beside']} beside it")
    for dialect in ("openai", "anthropic", "ollama"):
        whole, streamed = said[dialect]
        assert "Paris" in whole
        assert streamed == whole
    assert set(said["call"]) == {"city"}
    assert type(said["schema"]["big"]) is bool
    assert len(said["logprobs"]) == 2
    assert said["dimensions"] == 32
    demo_daemon.wait_idle("slow")
