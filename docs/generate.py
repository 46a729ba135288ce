"""Rewrites the parts of the docs that are data in the code: `python docs/generate.py`. tests/test_docs.py compares.

Must not hold any text of its own beyond the tables' headings.
"""

import re
from pathlib import Path

import msgspec

from forgellm.api import params
from forgellm.api.app import DIALECTS
from forgellm.config import ModelConfig, Settings
from forgellm.states import LEGAL_MOVES
from forgellm.supervisor.reload import takes_effect

DOCS = Path(__file__).parent


def settings_table(struct: type[msgspec.Struct]) -> str:
    """Every field of a settings struct: its name, type, default and one line of doc, from the schema itself; of the
    server-wide ones also when a change of it counts."""
    when = takes_effect() if struct is Settings else {}
    schema = msgspec.json.schema_components([struct])[1][struct.__name__]
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    if when:
        rows = [rows[0] + " a change counts |", rows[1] + "---|"]
    for field in msgspec.structs.fields(struct):
        entry = schema["properties"][field.encode_name]
        default = "required" if field.required else f"`{_literal(entry.get('default'))}`"
        rows.append(f"| `{field.encode_name}` | {_type(entry)} | {default} | {entry['description']} |")
        rows[-1] += f" {when[field.name]} |" if when else ""
    return "\n".join(rows)


def moves_table() -> str:
    """Every state and the states it may become."""
    rows = ["| state | may become |", "|---|---|"]
    rows += [f"| {state} | {', '.join(s for s in type(state) if s in LEGAL_MOVES[state])} |" for state in LEGAL_MOVES]
    return "\n".join(rows)


GENERATED = {
    "configuration.md": {
        "settings": lambda: settings_table(Settings),
        "model": lambda: settings_table(ModelConfig),
    },
    "lifecycle.md": {"moves": moves_table},
    "parameters.md": {"parameters": lambda: params.markdown(DIALECTS)},
}


def rewritten(page: str, text: str) -> str:
    """The page with the current table between each `<!-- generated: NAME -->` and its `<!-- end -->`."""
    for name, table in GENERATED[page].items():
        marked = re.compile(rf"(<!-- generated: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, count = marked.subn(lambda found, table=table: found[1] + table() + found[2], text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{page} needs exactly one place for the table {name!r}")
    return text


def _literal(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _type(entry: dict[str, object]) -> str:
    if "anyOf" in entry:
        options: list[dict[str, object]] = entry["anyOf"]  # type: ignore[assignment]
        return " or ".join(_type(option) for option in options)
    if "enum" in entry:
        values: list[object] = entry["enum"]  # type: ignore[assignment]
        return " or ".join("null" if value is None else f"`{value}`" for value in values)
    if entry.get("type") == "object":
        return "table"
    name = {"array": "list", "boolean": "true or false"}.get(str(entry.get("type")), str(entry.get("type")))
    low, high = entry.get("minimum"), entry.get("maximum")
    if low is not None and high is not None:
        return f"{name} {low:g} to {high:g}"  # type: ignore[str-format]
    return name if low is None else f"{name} ≥ {low:g}"  # type: ignore[str-format]


if __name__ == "__main__":
    for page in GENERATED:
        path = DOCS / page
        path.write_text(rewritten(page, path.read_text("utf-8")), "utf-8")
