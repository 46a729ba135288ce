"""A request's messages or prompt to token ids, through the tokenizer's own chat template.

Must not run a model, and lets no text of a message become a control token.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from forgellm.errors import ContextLengthExceeded, EmptyPrompt, InvalidRequest, TemplateError, Unsupported
from forgellm.messages import Request
from forgellm.worker import tools
from forgellm.worker.turns import Turns, stricter, text_of

_OWN_VARIABLES = frozenset(
    {"messages", "conversation", "tools", "tokenize", "add_generation_prompt", "continue_final_message"}
    | {"chat_template", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
"""What a template, or the call that renders it, gets from us: a request's template_options cannot set these."""


class PromptBuilder:
    """Token ids of requests, for one tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int, context_length: int) -> None:
        """`tokenizer`: mlx-lm's TokenizerWrapper (it knows templates that transformers does not)."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        # Tokenizing takes a second for each megabyte, while all streams wait: text that cannot fit is not tokenized.
        longest_token = max(len(token.encode("utf-8", "replace")) for token in tokenizer.get_vocab())
        self._context_length = context_length
        self._max_bytes = context_length * longest_token
        self.has_template = bool(tokenizer.has_chat_template)
        self._format = tools.format_of(tokenizer)
        added = (tokenizer.added_tokens_decoder or {}).values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        words = sorted((word for word in special if len(word) > 1), key=len, reverse=True)
        self._special = re.compile("(?=" + "|".join(map(re.escape, words)) + ")") if words else None

    def tokens(self, request: Request) -> list[int]:
        """The prompt's token ids, at least one. Raises InvalidRequest or TemplateError."""
        if request.tools is not None:
            tools.check(request.tools)
        self._check_template_fields(request)
        if request.messages is not None:
            tokens = self._from_messages(request)
        elif isinstance(request.prompt, tuple):
            tokens = self._from_ids(request.prompt)
        else:
            tokens = self._encode(_checked(request.prompt or "", "prompt"), True) if request.prompt else []
        if not tokens:
            raise EmptyPrompt("prompt is empty: give at least one token of text", field="prompt")
        return tokens

    def room(self, request: Request, prompt: list[int]) -> int:
        """How many tokens an answer may have after the prompt, at least one. Raises InvalidRequest."""
        limit = self._context_length
        if request.context_length is not None:
            limit = min(limit, request.context_length)
        room = limit - len(prompt)
        if room < 1:
            raise ContextLengthExceeded(
                f"the prompt has {len(prompt)} tokens and the answer needs at least 1, but the context length is "
                f"{limit}; shorten the prompt",
                field="prompt",
            )
        return room

    def _from_ids(self, prompt: tuple[int, ...]) -> list[int]:
        bad = next((token for token in prompt if not 0 <= token < self._vocab_size), None)
        if bad is not None:
            raise InvalidRequest(
                f"prompt holds token id {bad}; this model knows 0 to {self._vocab_size - 1}", field="prompt"
            )
        return list(prompt)

    def _from_messages(self, request: Request) -> list[int]:
        messages = request.messages or ()
        if not messages:
            raise InvalidRequest("messages is empty: give at least one message", field="messages")
        if request.continue_final and (messages[-1].get("role") != "assistant" or messages[-1].get("tool_calls")):
            raise InvalidRequest(
                "messages: continue_final goes on with a text of the assistant's; end with one, or leave it out",
                field="messages",
            )
        functions = request.tools.functions if request.tools is not None else ()
        for text in (*_texts(messages), *_texts(functions)):
            _checked(text, "messages")
        if request.template and not self.has_template:
            raise InvalidRequest(
                "template: this model has no chat template; leave it out, or treat it as a base model", field="template"
            )
        if self._format.is_native and request.template is not False:
            messages = tools.native_messages(messages)
        else:
            messages, functions = tools.plain_messages(messages, request.tools), ()
        separator, end = _unused((*messages, *functions))
        if self.has_template and request.template is not False:
            hints = {name: value for name, value in request.template_hints.items() if self._has_variable(name)}
            options = {**hints, **request.template_options}
            if not request.continue_final:
                rendered = self._rendered(messages, functions, options, separator, begins_answer=True)
            else:
                open_ended = (*messages[:-1], {**messages[-1], "content": text_of(messages[-1]) + end})
                rendered = _until(end, self._rendered(open_ended, functions, options, separator, begins_answer=False))
            return self._encode_split(rendered, separator, False)
        plain = "\n".join(self._guard(text_of(message), separator) for message in messages)
        return self._encode_split(plain, separator, True) if plain.replace(separator, "") else []

    def _check_template_fields(self, request: Request) -> None:
        """What only a chat template can honour is refused where there is none, or where it has no such variable."""
        if request.messages is None or request.template is False or not self.has_template:
            if request.tools is not None and (request.messages is None or not self.has_template):
                raise Unsupported("tools: they need messages, and a model with a chat template", field="tools")
            if request.template_options:
                raise Unsupported(
                    "template_options: they need messages, and a model with a chat template", field="template_options"
                )
        for name, value in request.template_options.items():
            is_off = (name, value) in (("enable_thinking", False), ("reasoning_effort", "none"))
            if is_off and not self._tokenizer.has_thinking:
                continue  # a model that never thinks does as it is told
            if name in _OWN_VARIABLES or not name.isidentifier() or not self._has_variable(name):
                raise Unsupported(
                    f"template_options: this model's chat template has no variable {name!r} to set; leave it out",
                    field="template_options",
                )

    def _has_variable(self, name: str) -> bool:
        template = self._tokenizer.chat_template  # a callable where it is a program of mlx-lm's
        return not isinstance(template, str) or re.search(rf"\b{re.escape(name)}\b", template) is not None

    def _rendered(
        self,
        messages: tuple[Mapping[str, Any], ...],
        functions: tuple[Mapping[str, Any], ...],
        options: Mapping[str, Any],
        separator: str,
        *,
        begins_answer: bool,
    ) -> str:
        guarded: dict[str, Any] = {"conversation": [self._guarded(message, separator) for message in messages]}
        if functions:
            guarded["tools"] = [self._guarded(function, separator) for function in functions]
        try:
            return self._render(guarded, options, begins_answer)
        except TemplateError as error:
            if options:
                try:
                    self._render(guarded, {}, begins_answer)
                except TemplateError:
                    raise error from None
                error.field = "template_options"
            raise

    def _render(self, guarded: dict[str, Any], options: Mapping[str, Any], begins_answer: bool) -> str:
        settings = {**options, "tokenize": False, "add_generation_prompt": begins_answer}
        if "tools" in guarded:
            settings["tools"] = guarded["tools"]
        try:
            return self._render_turns(guarded["conversation"], settings)
        except Exception as error:  # a template is a model's own program; it raises what it likes
            raise TemplateError(
                f"the model's chat template refused the messages: {error or type(error).__name__}", field="messages"
            ) from error

    def _render_turns(self, turns: Turns, settings: Mapping[str, Any]) -> str:
        """As the turns are, or in the first stricter form that the template takes. Raises what it raised at first."""
        try:
            return str(self._tokenizer.apply_chat_template(turns, **settings))
        except Exception:  # a template raises what it likes; the first error goes on up if no form is taken
            for form in stricter(turns):
                with contextlib.suppress(Exception):  # as above: the first error says more
                    return str(self._tokenizer.apply_chat_template(form, **settings))
            raise

    # A special token written in a message ("<|im_end|>") must stay plain text. Its first character is parted from the
    # rest by a character that is no text (a Unicode noncharacter), the template renders that, and the rendered text is
    # tokenized in pieces, none of which holds a whole special token of the user's. Another such character marks the end
    # of an answer that is gone on with: what the template writes after it, and would trim before it, is left out.

    def _guard(self, text: str, separator: str) -> str:
        if self._special is None:
            return text
        cuts = [0, *(match.start() + 1 for match in self._special.finditer(text)), len(text)]
        return separator.join(text[a:b] for a, b in pairwise(cuts)) if len(cuts) > 2 else text

    def _guarded(self, value: Any, separator: str) -> Any:
        """`value` with every text in it guarded, keys and roles too: a function's name is a user's text as well."""
        if isinstance(value, str):
            return self._guard(value, separator)
        if isinstance(value, Mapping):
            return {self._guarded(key, separator): self._guarded(each, separator) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._guarded(each, separator) for each in value]
        return value

    def _encode_split(self, text: str, separator: str, add_special_tokens: bool) -> list[int]:
        first, *rest = text.split(separator)
        tokens = self._encode(first, add_special_tokens)
        for piece in rest:
            tokens += self._encode(piece, False)
        return tokens

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) > self._max_bytes:  # characters, of at least one byte each
            raise ContextLengthExceeded(
                f"the prompt has {len(text)} characters, which is more than the context length of "
                f"{self._context_length} tokens can hold; shorten the prompt",
                field="prompt",
            )
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))


def _unused(messages: tuple[Mapping[str, Any], ...]) -> tuple[str, str]:
    """Two noncharacters that no text of these holds."""
    held = set().union(*map(set, _texts(messages)))
    free = [chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in held]
    if len(free) < 2:
        raise InvalidRequest(
            "messages hold too many of the noncharacters U+FDD0 to U+FDEF; remove two", field="messages"
        )
    return free[0], free[1]


def _until(end: str, rendered: str) -> str:
    before, *after = rendered.split(end)
    if len(after) != 1:
        raise TemplateError(
            "the model's chat template does not write the last message once, as it is: it cannot be gone on with",
            field="messages",
        )
    return before


def _texts(value: Any) -> Iterator[str]:
    """Every text in it, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _checked(text: str, field: str) -> str:
    """`text`, if it can be tokenized: half of a surrogate pair is not text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{field} holds half of a surrogate pair (U+{ord(text[error.start]):04X}), which is not text", field=field
        ) from error
    return text
