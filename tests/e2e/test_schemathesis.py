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

pytestmark = pytest.mark.e2e

MODELS = "".join(f'[models.{name}]\nsource = "echo"\npreload = true\n' for name in ("asked", "managed"))
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
NAMES = {"model", "model_name"}


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the names of models that there are; a random name would never reach a model."""
    for name, schema in document["components"]["schemas"].items():
        model = "managed" if name in {"LoadBody", "UnloadBody"} else "asked"
        for field in NAMES & set(schema.get("properties", ())):
            schema["properties"][field] = {"enum": [model]}
        if "replicas" in schema.get("properties", ()):
            schema["properties"]["replicas"] = {"enum": [1, 2]}  # 64 processes say no more than 2
    return document


def made_key(folder: Path) -> str:
    """A key for everything, in the keys file of a daemon whose cache folder is `folder`."""
    scopes = [part for scope in ("infer", "manage", "metrics") for part in ("--scope", scope)]
    command = [sys.executable, "-m", "forgellm.cli", "keys", "create", "--json", *scopes]
    env = {**os.environ, "FORGELLM_CACHE_DIR": str(folder)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=env)
    return str(json.loads(run.stdout)["key"])


@pytest.mark.parametrize(
    ("with_keys", "phases"),
    [(False, "coverage,fuzzing"), (True, "fuzzing")],  # "coverage" tries every bound of every field: thousands of calls
    ids=["without keys", "with keys"],
)
def test_no_route_answers_what_the_document_does_not_say(tmp_path: Path, with_keys: bool, phases: str) -> None:
    headers = {}
    if with_keys:
        headers["Authorization"] = f"Bearer {made_key(tmp_path)}"
    with daemon(tmp_path, MODELS) as served:
        document = served.http.get("/openapi.json", headers=headers).json()
        path = tmp_path / "openapi.json"
        path.write_text(json.dumps(narrowed(document)), "utf-8")
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(path), "--url", served.url, "--no-color"),
                *("--checks", CHECKS, "--phases", phases, "--max-examples", "10", "--workers", "2"),
                *("--no-shrink", "--generation-database", "none"),
                *("--request-timeout", "20", "--exclude-path", "/api/admin/drain"),
                *(part for name, value in headers.items() for part in ("-H", f"{name}: {value}")),
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            cwd=tmp_path,
        )
        print(run.stdout[-6000:])
        assert run.returncode == 0, run.stderr
        assert int(re.findall(r"(\d+) generated", run.stdout)[0]) > 50
        assert served.http.get("/api/health").status_code == 200
