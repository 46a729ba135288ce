"""A conversation for templates that are strict about roles: one system turn at the start or none, users' turns joined.

Renders nothing, and leaves no text out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PARAGRAPH = "\n\n"

Turns = Sequence[Mapping[str, Any]]


def stricter(turns: Turns) -> Iterator[Turns]:
    """The same texts in fewer roles, each form stricter than the one before; none that is as `turns` already are.

    Coding agents give several system turns, and some in mid-conversation; many templates raise on that."""
    count = next((at for at, turn in enumerate(turns) if turn.get("role") != "system"), len(turns))
    first = [_joined(turns[:count])] if count else []
    given = list(turns)
    for form in (first + _as_users(turns[count:]), _as_users(turns)):
        if form != given:
            given = form
            yield form


def _as_users(turns: Turns) -> list[Mapping[str, Any]]:
    """System turns are users', and what users say in a row is one turn."""
    found: list[Mapping[str, Any]] = []
    for turn in turns:
        user = {**turn, "role": "user"} if turn.get("role") == "system" else turn
        if found and user.get("role") == found[-1].get("role") == "user":
            user = _joined([found.pop(), user])
        found.append(user)
    return found


def text_of(turn: Mapping[str, Any]) -> str:
    """The text of a turn, whose content may be a string, text parts ({"type": "text", "text": …}), or absent."""
    content = turn.get("content")
    if isinstance(content, list | tuple):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _joined(turns: Turns) -> Mapping[str, Any]:
    if len(turns) == 1:
        return turns[0]
    return {**turns[0], "content": PARAGRAPH.join(map(text_of, turns))}
