"""The text of one answer, taken apart as it comes: reasoning, text, and calls of functions.

Chooses no token. The same tokens give the same pieces, so a replay goes on in the middle of any of them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from forgellm.messages import Reasoning, ToolCall
from forgellm.worker.text import Decoder, TextStream
from forgellm.worker.tools import ToolFormat

Thinking = Literal["never", "may", "is"]
"""Whether an answer has no reasoning, may begin with some, or is in it from its first token (the prompt began it)."""

_HEAD = re.compile(r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


def cut(text: str, mark: str) -> tuple[str, str | None]:
    """(what is before the mark, what is after it or None). Without one, a tail that may become it is left out: the rest
    of `text` after the first part."""
    at = text.find(mark)
    if at >= 0:
        return text[:at], text[at + len(mark) :]
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return text[:-length], None
    return text, None


class CallReader:
    """Where an answer's calls are: their format, and whether a grammar of ours keeps them to {"name", "arguments"}, so
    that the arguments may be shown as they come."""

    def __init__(
        self, form: ToolFormat, functions: tuple[Mapping[str, Any], ...], request_id: str, *, guided: bool, one: bool
    ) -> None:
        self.form = form
        self.functions = functions
        self.guided = guided
        self.one = one
        self._request_id = request_id
        self.count = 0

    def first(self, name: str, arguments: str, call_id: str | None = None) -> ToolCall:
        """The first piece of the next call. Its id is the same whenever the same request is run."""
        index = self.count
        self.count += 1
        if call_id is None:
            digest = hashlib.sha256(f"{self._request_id}:{index}".encode("utf-8", "replace")).hexdigest()
            call_id = f"call_{digest[:24]}"
        return ToolCall(index, arguments, call_id, name)


class Answer(TextStream):
    """A TextStream whose reasoning and calls come apart, as parts. Stop strings are looked for in the text alone."""

    def __init__(
        self,
        decoder: Decoder,
        stops: Sequence[str],
        *,
        thinking: Thinking = "never",
        think_marks: tuple[str, str] = ("", ""),
        calls: CallReader | None = None,
    ) -> None:
        super().__init__(decoder, stops)
        self._calls = calls
        self._think_start, self._think_end = think_marks
        self._may_think = thinking == "may"
        self._state = self._in_reasoning if thinking == "is" else self._in_text
        self._held = ""
        self._space = ""  # white space before a call is not text
        self._drops_space = thinking == "is"
        self._json = _Object()

    @property
    def has_calls(self) -> bool:
        return self._calls is not None and self._calls.count > 0

    @property
    def thinking(self) -> Thinking:
        """Whether what comes next is reasoning, may be its beginning, or is past it."""
        if self._state == self._in_reasoning:
            return "is"
        return "may" if self._may_think else "never"

    def push(self, token: int) -> str:
        """The text that may be shown after this token; what is not text waits in take_parts()."""
        new = self._decoder.push(token)
        if not new:
            return ""
        self._held += new
        shown = ""
        is_new = True
        while is_new and not self.is_stopped:
            text, is_new = self._state()
            shown += self._say(text)
        return shown

    def finish(self) -> str:
        """What is still held back, at the end of the answer."""
        if self.is_stopped:
            return ""
        held, self._held = self._held, ""
        text = ""
        if self._state == self._in_reasoning:
            self._think(held)
        elif self._state == self._in_foreign_call:
            text = self._say(self._foreign(held, ""))
        elif self._state == self._in_text:
            text = self._say(held)
        if not self.is_stopped and not self.has_calls:
            space, self._space = self._space, ""
            text += self._matched(space)
        return text + super().finish()

    # Each state: what of the held text is text, and whether another state goes on with the rest now. ---

    def _in_text(self) -> tuple[str, bool]:
        if self._may_think:
            return self._at_start()
        if self._calls is None:
            text, self._held = self._held, ""
            return text, False
        text, rest = cut(self._held, self._calls.form.start)
        if rest is None:
            self._held = self._held[len(text) :]
            return text, False
        self._held = rest
        self._state = self._in_call_head if self._calls.guided else self._in_foreign_call
        return text, True

    def _at_start(self) -> tuple[str, bool]:
        begun = self._held.lstrip()
        if len(begun) < len(self._think_start) and self._think_start.startswith(begun):
            return "", False
        self._may_think = False
        if begun.startswith(self._think_start):
            self._held = begun[len(self._think_start) :]
            self._state, self._drops_space = self._in_reasoning, True
        return "", True

    def _in_reasoning(self) -> tuple[str, bool]:
        thought, rest = cut(self._held, self._think_end)
        self._think(thought)
        self._held = self._held[len(thought) :] if rest is None else rest
        if rest is not None:
            self._state, self._drops_space = self._in_text, True
        return "", rest is not None

    def _in_call_head(self) -> tuple[str, bool]:
        head = _HEAD.match(self._held)
        if head is None or self._calls is None:
            return "", False
        self._parts.append(self._calls.first(json.loads(head[1]), ""))
        self._held = self._held[head.end() :]
        self._json = _Object()
        self._state = self._in_arguments
        return "", True

    def _in_arguments(self) -> tuple[str, bool]:
        end = self._json.end(self._held)
        piece = self._held if end is None else self._held[:end]
        self._held = self._held[len(piece) :]
        if piece and self._calls is not None:
            self._parts.append(ToolCall(self._calls.count - 1, piece))
        if end is not None:
            self._state = self._in_call_tail
        return "", end is not None

    def _in_call_tail(self) -> tuple[str, bool]:
        mark = self._calls.form.end if self._calls is not None else ""
        _, rest = cut(self._held, mark or "}")
        if rest is None:
            return "", False
        self._held = rest
        self._end_call()
        return "", True

    def _in_foreign_call(self) -> tuple[str, bool]:
        mark = self._calls.form.end if self._calls is not None else ""
        at = self._held.find(mark) if mark else -1
        if at < 0:
            return "", False
        body, self._held = self._held[:at], self._held[at + len(mark) :]
        return self._foreign(body, mark), True

    # Pieces -----------------------------------------------------------------------------------------------------------

    def _foreign(self, body: str, mark: str) -> str:
        """The calls of a body in the model's own syntax; as text, marks and all, if there is none in it."""
        if self._calls is None:
            return ""
        found = self._calls.form.calls(body, self._calls.functions)
        if not found:
            self._state = self._in_text
            return f"{self._calls.form.start}{body}{mark}"
        for name, arguments, call_id in found[: 1 if self._calls.one else None]:
            self._parts.append(self._calls.first(name, arguments, call_id))
        self._end_call()
        return ""

    def _end_call(self) -> None:
        self._state = self._in_text
        self._space = ""
        self._drops_space = True
        self.is_stopped = self._calls is not None and self._calls.one

    def _think(self, text: str) -> None:
        if self._drops_space:
            text = text.lstrip()
            self._drops_space = not text
        if text:
            self._parts.append(Reasoning(text))

    def _say(self, text: str) -> str:
        if self._drops_space:
            text = text.lstrip()
        if not text:
            return ""
        self._drops_space = False
        if self._calls is not None:
            text = self._space + text
            kept = text.rstrip()
            self._space = text[len(kept) :]
            text = kept
        return self._matched(text)


class _Object:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_text = False
        self._is_escaped = False

    def end(self, piece: str) -> int | None:
        """The index in `piece` after the object's last character, or None."""
        for at, char in enumerate(piece):
            if self._is_text:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._is_text = False
            elif char == '"':
                self._is_text = True
            elif char == "{":
                self._depth += 1
            elif char == "}":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None
