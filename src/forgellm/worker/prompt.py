"""A request's messages or prompt to token ids, through the tokenizer's own chat template.

Must not run a model, and lets no text of a message become a control token.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from forgellm.errors import ContextLengthExceeded, EmptyPrompt, InvalidRequest, TemplateError
from forgellm.messages import Request


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
        added = (tokenizer.added_tokens_decoder or {}).values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        words = sorted((word for word in special if len(word) > 1), key=len, reverse=True)
        self._special = re.compile("(?=" + "|".join(map(re.escape, words)) + ")") if words else None

    def tokens(self, request: Request) -> list[int]:
        """The prompt's token ids, at least one. Raises InvalidRequest or TemplateError."""
        if request.messages is not None:
            tokens = self._from_messages(request)
        elif isinstance(request.prompt, tuple):
            tokens = self._from_ids(request.prompt)
        else:
            tokens = self._encode(_checked(request.prompt or "", "prompt"), True) if request.prompt else []
        if not tokens:
            raise EmptyPrompt("prompt is empty: give at least one token of text", field="prompt")
        return tokens

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
        for message in messages:
            _checked(_content(message), "messages")
        if request.template and not self.has_template:
            raise InvalidRequest(
                "template: this model has no chat template; leave it out, or treat it as a base model", field="template"
            )
        separator = self._separator(messages)
        if self.has_template and request.template is not False:
            return self._encode_split(self._render(messages, separator), separator, False)
        plain = "\n".join(self._guard(_content(message), separator) for message in messages)
        return self._encode_split(plain, separator, True) if plain.replace(separator, "") else []

    def _render(self, messages: tuple[Mapping[str, Any], ...], separator: str) -> str:
        guarded = [self._guarded(message, separator) for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(guarded, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a model's own program; it raises what it likes
            raise TemplateError(
                f"the model's chat template refused the messages: {error or type(error).__name__}", field="messages"
            ) from error

    # A special token written in a message ("<|im_end|>") must stay plain text. Its first character is parted from the
    # rest by a character that is no text (a Unicode noncharacter), the template renders that, and the rendered text is
    # tokenized in pieces, none of which holds a whole special token of the user's.

    def _separator(self, messages: tuple[Mapping[str, Any], ...]) -> str:
        text = "".join(_content(message) for message in messages)
        for code in range(0xFDD0, 0xFDF0):
            if chr(code) not in text:
                return chr(code)
        raise InvalidRequest("messages hold all the noncharacters U+FDD0 to U+FDEF; remove one", field="messages")

    def _guard(self, text: str, separator: str) -> str:
        if self._special is None:
            return text
        cuts = [0, *(match.start() + 1 for match in self._special.finditer(text)), len(text)]
        return separator.join(text[a:b] for a, b in pairwise(cuts)) if len(cuts) > 2 else text

    def _guarded(self, message: Mapping[str, Any], separator: str) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": self._guard(content, separator)}
        if isinstance(content, list | tuple):
            parts = [
                {**part, "text": self._guard(part["text"], separator)} if isinstance(part.get("text"), str) else part
                for part in content
            ]
            return {**message, "content": parts}
        return dict(message)

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


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message; content may be a string, text parts ({"type": "text", "text": …}), or absent."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _checked(text: str, field: str) -> str:
    """`text`, if it can be tokenized: half of a surrogate pair is not text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{field} holds half of a surrogate pair (U+{ord(text[error.start]):04X}), which is not text", field=field
        ) from error
    return text
