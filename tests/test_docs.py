"""What the docs say is so: links, commands, code blocks, settings, states, routes, error codes."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from forgellm.api.app import create_app
from forgellm.api.errors import STATUS_BY_CODE
from forgellm.api.pool import Pool
from forgellm.cli import main as cli
from forgellm.config import Settings, load_settings
from forgellm.errors import BY_CODE
from forgellm.states import WorkerState

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")
HTTP_API = (DOCS / "http-api.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def first_column(text: str) -> list[str]:
    """The `words` that begin the rows of the tables in a text."""
    return re.findall(r"^\| `([\w]+)` \|", text, re.MULTILINE)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


def test_every_page_of_the_docs_is_linked_from_somewhere() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    }
    assert [page for page in DOCS.rglob("*.md") if page not in linked] == []


def test_the_commands_of_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    shell = "\n".join(blocks(README, "sh")) + "\n" + "\n".join(re.findall(r"`(make [a-z]+)`", README))
    made = re.findall(r"^make ([a-z]+)", shell, re.MULTILINE)
    run = re.findall(r"^forgellm ([a-z]+)", shell, re.MULTILINE)
    assert made
    assert set(made) <= set(targets)
    assert run
    assert set(run) <= set(cli.commands)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"^\| `{command}\b", (DOCS / "cli.md").read_text("utf-8"), re.MULTILINE)


def test_the_python_of_the_readme_compiles() -> None:
    assert [compile(block, "README.md", "exec") for block in blocks(README, "python")]


@pytest.mark.model
@pytest.mark.parametrize("block", blocks(README, "python"))
def test_the_python_of_the_readme_runs(block: str) -> None:
    """As a reader would try it: `python -c`, which has no main module that a worker could import."""
    run = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout


def test_the_settings_in_the_docs_are_loaded(tmp_path: Path) -> None:
    found = blocks((DOCS / "configuration.md").read_text("utf-8"), "toml")
    assert found
    for number, block in enumerate(found):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, "utf-8")
        load_settings(path, env={})


def test_the_tables_that_come_from_the_code_are_fresh(generate: ModuleType) -> None:
    """If this fails, run `make docs`."""
    for page in generate.GENERATED:
        text = (DOCS / page).read_text("utf-8")
        assert generate.rewritten(page, text) == text


def test_every_setting_is_documented() -> None:
    documented = first_column((DOCS / "configuration.md").read_text("utf-8"))
    assert set(Settings.__struct_fields__) <= set(documented)


def test_every_state_is_explained() -> None:
    section = (DOCS / "lifecycle.md").read_text("utf-8").split("## States")[1].split("Only these moves")[0]
    assert re.findall(r"^\| (\w+) \| ", section, re.MULTILINE)[1:] == [str(state) for state in WorkerState]


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", HTTP_API, re.MULTILINE)
    assert {code: int(status) for code, status in rows} == STATUS_BY_CODE
    assert BY_CODE.keys() <= STATUS_BY_CODE.keys()


def test_every_route_is_documented() -> None:
    nobody = cast("Pool", object())  # the routes are only listed, never called
    rules = create_app(nobody, Settings()).url_map.iter_rules()
    routes = {re.sub(r"<(?:path:)?(\w+)>", r"{\1}", str(rule)) for rule in rules}
    assert [route for route in routes if route not in HTTP_API] == []


def test_the_json_of_the_docs_is_json() -> None:
    found: list[Any] = []
    for block in blocks(HTTP_API, "json"):
        objects = block.replace("\n ", " ").splitlines()
        found += [json.loads(line) for line in objects]
    assert len(found) >= 5
