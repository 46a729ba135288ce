"""schemathesis calls every route of /openapi.json with what the document allows, and with what it does not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemons import daemon
from hub_server import hub_server

pytestmark = pytest.mark.e2e

MODELS = "".join(f'[models.{name}]\nsource = "echo"\npreload = true\n' for name in ("asked", "managed"))
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CONFIG = """
[phases.coverage]
unexpected-methods = []
generate-duplicate-query-parameters = false

[[operations]]
include-path = "/api/events"
max-stream-events = 1
"""  # that stream has no end, and a request would be read until its timeout
BY_BOUNDS = ("/api/model/generate", "/v1/completions")
"""Every bound of every field of these is tried. One decoder reads all bodies, and all routes would be thousands."""
NAMES = {"model", "model_name"}
MODEL_OF = {"LoadBody": "managed", "UnloadBody": "managed", "PullBody": "org/name", "OllamaPullBody": "org/name"}
DRAIN = "/api/admin/drain"  # comes last: nothing is answered after it


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the names of models that there are; a random name would never reach a model."""
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Body"):
            continue
        model = MODEL_OF.get(name, "asked")
        for field in NAMES & set(schema.get("properties", ())):
            schema["properties"][field] = {"enum": [model]}
        if "replicas" in schema.get("properties", ()):
            schema["properties"]["replicas"] = {"enum": [1, 2]}  # 64 processes say no more than 2
        for field in (name for name in schema.get("properties", ()) if name.endswith("timeout_s")):
            schema["properties"][field] = {"enum": [None, 0, 30]}  # a shorter one is kept: 504, which is no fault
    return document


def made_key(folder: Path) -> str:
    """A key for everything, in the keys file of the daemon of `folder`."""
    scopes = [part for scope in ("infer", "manage", "metrics") for part in ("--scope", scope)]
    command = [sys.executable, "-m", "forgellm.cli", "keys", "create", "--json", *scopes]
    env = {**os.environ, "FORGELLM_KEYS_FILE": str(folder / "keys.json")}
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=env)
    return str(json.loads(run.stdout)["key"])


def called(folder: Path, document: dict[str, Any], url: str, headers: dict[str, str], *options: str) -> int:
    """Has schemathesis call what `document` describes; how many calls it made. Fails on a wrong answer.

    One worker: with two, CPython 3.11 sometimes raises SystemError in the ast module that hypothesis uses."""
    path = folder / "openapi.json"
    path.write_text(json.dumps(narrowed(document)), "utf-8")
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG, "utf-8")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(path), "--url", url),
            *("--no-color", "--checks", CHECKS, "--workers", "1", "--no-shrink", "--generation-database", "none"),
            *("--request-timeout", "20", *options),
            *(part for name, value in headers.items() for part in ("-H", f"{name}: {value}")),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=folder,
    )
    print(run.stdout[-6000:])
    assert run.returncode == 0, run.stderr
    return int(re.findall(r"(\d+) generated", run.stdout)[0])


@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
def test_no_route_answers_what_the_document_does_not_say(
    tmp_path: Path, with_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": f"Bearer {made_key(tmp_path)}"} if with_keys else {}
    with hub_server() as hub:
        hub.add("org/name", {"config.json": b"{}"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        call_every_route(tmp_path, headers, has_bounds=not with_keys)  # the bodies are the same with keys


def call_every_route(folder: Path, headers: dict[str, str], *, has_bounds: bool) -> None:
    with daemon(folder, MODELS) as served:
        document = served.http.get("/openapi.json", headers=headers).json()
        paths = document["paths"]
        few = ("--phases", "fuzzing", "--max-examples", "6")
        made = called(folder, document, served.url, headers, *few, "--exclude-path", DRAIN)
        assert made >= 2 * sum("requestBody" in each for path in paths.values() for each in path.values())
        if has_bounds:
            bounds = [part for path in BY_BOUNDS for part in ("--include-path", path)]
            assert called(folder, document, served.url, headers, "--phases", "coverage", *bounds) > 100
        assert called(folder, document, served.url, headers, *few, "--include-path", DRAIN) >= 2
        assert served.http.get("/api/health").status_code == 200
