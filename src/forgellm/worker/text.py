"""Token ids to text that may be shown: whole code points only, and nothing of a stop string.

Must not import mlx; knows tokenizers only by what they say of their tokens.
"""

import codecs
import functools
import json
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, Protocol

from forgellm.messages import Part, Stopped

MAX_UNDECODED_TOKENS = 8
"""A code point takes at most 4 bytes, so at most 4 tokens; after twice that the bytes are garbage and shown as such."""


@functools.cache
def byte_of_char() -> dict[str, int]:
    """The inverse of GPT-2's byte-to-unicode table (openai/gpt-2, encoder.py): printable Latin-1 stands for itself,
    the other 68 bytes were moved to U+0100 and up, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(moved)}


class TokenText:
    """What each token of one tokenizer stands for.

    Byte-level BPE and SentencePiece with byte fallback are exact bytes per token; any other decoder is asked for the
    text of a short window of tokens. Special tokens (EOS, chat markers) stand for nothing.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a transformers tokenizer, or mlx-lm's wrapper of one."""
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        self.hidden = {int(i) for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self._kind, self.strips_first_space = _decoder_kind(tokenizer)
        self._bytes: dict[int, bytes] = {}

    @property
    def is_exact(self) -> bool:
        """Whether each token is known to be certain bytes, whatever comes before it."""
        return self._kind != "other"

    def reveal(self, tokens: Iterable[int]) -> None:
        """Let these special tokens stand for their names: the marks of reasoning and of calls."""
        self.hidden -= set(tokens)
        self._bytes.clear()

    def decoder(self, *, is_continuation: bool, shows_special: bool = False) -> "Decoder":
        """A decoder for one answer. `is_continuation`: it goes on a raw text, whose leading space must be kept.
        `shows_special`: special tokens stand for their names, for a model that writes its calls with them."""
        if self._kind == "other":
            hidden: set[int] = set() if shows_special else self.hidden
            return _WindowDecoder(functools.partial(self._decode, hidden=hidden), hidden)
        bytes_of = self._named_bytes_of if shows_special else self.bytes_of
        return _ByteDecoder(bytes_of, self.strips_first_space and not is_continuation)

    def _named_bytes_of(self, token: int) -> bytes:
        return self.text_of(token).encode("utf-8", "replace") if token in self.hidden else self.bytes_of(token)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token adds; none for a special token and for ids beyond the vocabulary."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = b"" if token in self.hidden else self._look_up(token)
        return found

    def tokens_of(self, text: str) -> list[int]:
        """How the tokenizer writes a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def text_of(self, token: int) -> str:
        """One token for people, as in logprobs: special tokens by name, half a code point as U+FFFD."""
        if token in self.hidden:
            return str(self._tokenizer.convert_ids_to_tokens(token))
        return self._decode([token]) if self._kind == "other" else self.bytes_of(token).decode("utf-8", "replace")

    def _decode(self, tokens: Sequence[int], hidden: Set[int] = frozenset()) -> str:
        shown = [token for token in tokens if token not in hidden]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))

    def _look_up(self, token: int) -> bytes:
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        if self._kind == "byte-level":
            table = byte_of_char()
            known = [table[char] for char in name if char in table]
            return bytes(known) if len(known) == len(name) else name.encode("utf-8")
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return str(name).replace("\u2581", " ").encode("utf-8")


def _decoder_kind(tokenizer: Any) -> tuple[str, bool]:
    """("byte-level" | "byte-fallback" | "other", whether the decoder strips the text's first space)."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return "other", False
    state = json.loads(decoder.__getstate__())
    parts = state["decoders"] if state["type"] == "Sequence" else [state]
    names = [part["type"] for part in parts]
    if names == ["ByteLevel"]:
        return "byte-level", False
    if names[:3] == ["Replace", "ByteFallback", "Fuse"] and names[3:] in ([], ["Strip"]):
        return "byte-fallback", names[3:] == ["Strip"]
    return "other", False


class Decoder(Protocol):
    """Tokens of one answer to text, as soon as it is whole."""

    def push(self, token: int) -> str:
        """The text that is whole now; bytes that can never become text are U+FFFD."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing of a code point waits for the rest of it."""


class _ByteDecoder:
    def __init__(self, bytes_of: Callable[[int], bytes], strips_first_space: bool) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips = strips_first_space

    def push(self, token: int) -> str:
        text = self._utf8.decode(self._bytes_of(token))
        if self._strips and text:
            self._strips = False
            return text.removeprefix(" ")
        return text

    @property
    def is_whole(self) -> bool:
        return not self._utf8.getstate()[0]


class _WindowDecoder:
    """Decodes the last few tokens twice, with and without the new one, and shows the difference."""

    def __init__(self, decode: Callable[[Sequence[int]], str], hidden: set[int]) -> None:
        self._decode = decode
        self._hidden = hidden
        self._shown: list[int] = []
        self._new: list[int] = []

    def push(self, token: int) -> str:
        if token in self._hidden:
            return ""
        self._new.append(token)
        before = self._decode(self._shown)
        text = self._decode(self._shown + self._new)
        if text.endswith("\ufffd") and len(self._new) < MAX_UNDECODED_TOKENS:
            return ""
        self._shown, self._new = self._new, []
        return text[len(before) :]

    @property
    def is_whole(self) -> bool:
        return not self._new


class StopMatcher:
    """Holds text back while it may still become a stop string.

    The stop string that is complete first wins; of several complete at the same character, the longest.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was found; it and what follows are dropped). `found` is it."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, at = min(found)
            self._held, self.found = "", text[at:end]
            return text[:at], True
        keep = self._possible_start(text)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """The held text, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """The first index from which `text` is a proper prefix of a stop string; len(text) if there is none."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[at:]
            if any(stop.startswith(tail) for stop in self._stops):
                return at
        return len(text)


class TextStream:
    """The text of one answer: push its tokens, show what comes back."""

    def __init__(self, decoder: Decoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._matcher = StopMatcher(stops) if any(stops) else None
        self._parts: list[Part] = []
        self.is_stopped = False

    def push(self, token: int) -> str:
        """The text that may be shown after this token; sets `is_stopped` if a stop string was completed."""
        return self._matched(self._decoder.push(token))

    @property
    def is_whole(self) -> bool:
        """Whether the last token ended with a whole code point."""
        return self._decoder.is_whole

    @property
    def has_calls(self) -> bool:
        """Whether there were calls of functions."""
        return False

    def take_parts(self) -> tuple[Part, ...] | None:
        """What came since the last time that is not text."""
        if not self._parts:
            return None
        parts, self._parts = tuple(self._parts), []
        return parts

    def _matched(self, text: str) -> str:
        if self._matcher is None or not text:
            return text
        text, self.is_stopped = self._matcher.push(text)
        if self.is_stopped:
            self._parts.append(Stopped(self._matcher.found))
        return text

    def finish(self) -> str:
        """The text still held back. Bytes of an unfinished code point are not text, and are dropped."""
        return self._matcher.flush() if self._matcher and not self.is_stopped else ""
