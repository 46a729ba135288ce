"""A running answer: the iterator that a caller holds while the supervisor fills it. One writer, one reader."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from forgellm.errors import ForgeLLMError
from forgellm.messages import Chunk, FinishReason, Part, TokenLogprobs, Usage


@dataclass(frozen=True, slots=True)
class Token:
    """One step of text. `text` may be empty while a code point or a possible stop string is incomplete; `parts` are
    what the step gave besides: reasoning, pieces of tool calls, embeddings."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    parts: tuple[Part, ...] | None = None

    def __str__(self) -> str:
        return self.text


def _token(chunk: Chunk) -> Token:
    _, text, token_ids, logprobs, _, _, parts = chunk
    return Token(text, token_ids, logprobs, parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished generation. Times in seconds as the caller saw them; `usage` holds the worker's own."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    time_to_first_token_s: float
    total_s: float


class Generation:
    """Iterate over it for tokens; leaving early, or close(), aborts the generation in the worker.

    Raises the ForgeLLMError that ended it, if one did. `finish_reason` and `usage` are set once it has ended.
    """

    def __init__(self, request_id: str, model: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.model = model
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.prefill: tuple[int, int] = (0, 0)  # prompt tokens processed, of how many
        self.time_to_first_token_s: float | None = None
        self.total_s: float | None = None
        self._abort = abort
        self._started = time.monotonic()
        # Not Tokens yet: a slow reader's may be thousands, and garbage collections look at each object but at no tuple.
        self._chunks: deque[Chunk] = deque()
        self._error: ForgeLLMError | None = None
        self._closed = False
        self._ended = threading.Event()
        self._news = threading.Condition()

    # The reader's side ---------------------------------------------------------------------------------------------

    def take(self, timeout_s: float) -> list[Token]:
        """All tokens that have come, waiting up to `timeout_s` for the first; [] if none came or it has ended."""
        with self._news:
            if not self._chunks and not self.has_ended:
                self._news.wait(timeout_s)
            if self._chunks:
                tokens = [_token(chunk) for chunk in self._chunks]
                self._chunks.clear()
                return tokens
            if self._error is not None:
                raise self._error
            return []

    @property
    def has_ended(self) -> bool:
        """Whether the last token has come (it may still wait in take()), or an error has."""
        return self.finish_reason is not None or self._error is not None

    def wait_ended(self, timeout_s: float) -> bool:
        """has_ended, after waiting up to `timeout_s` for it. Tokens do not wake who waits here."""
        return self._ended.wait(timeout_s)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        with self._news:
            while not self._chunks:
                if self._error is not None:
                    raise self._error
                if self.finish_reason is not None:
                    raise StopIteration
                self._news.wait()  # ended by the pool: every request has a deadline there
            return _token(self._chunks.popleft())

    def result(self) -> Completion:
        """Wait for the end and return the whole text. Raises the ForgeLLMError that ended it."""
        text = "".join(token.text for token in self)
        if (
            self.finish_reason is None or self.usage is None or self.total_s is None
        ):  # pragma: no cover - put() sets all three at once; tells mypy so
            raise AssertionError("a generation ends with a finish_reason and a usage")
        return Completion(
            text=text,
            finish_reason=self.finish_reason,
            usage=self.usage,
            time_to_first_token_s=self.time_to_first_token_s or self.total_s,
            total_s=self.total_s,
        )

    def close(self) -> None:
        """Abort it if it still runs. Idempotent."""
        if not self._closed:
            self._closed = True
            if not self.has_ended:
                self._abort(self.request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    # The supervisor's side -----------------------------------------------------------------------------------------

    def put(self, chunk: Chunk) -> None:
        """One chunk from the worker; the last one carries the finish_reason."""
        _, text, token_ids, _, finish_reason, usage, parts = chunk
        with self._news:
            if text or token_ids or parts:
                if self.time_to_first_token_s is None:
                    self.time_to_first_token_s = time.monotonic() - self._started
                self._chunks.append(chunk)
            if finish_reason is not None:
                self.total_s = time.monotonic() - self._started
                self.usage = usage
                self.finish_reason = finish_reason
                self._ended.set()
            self._news.notify()

    def fail(self, error: ForgeLLMError) -> None:
        """End it with an error, which the reader's next call raises."""
        with self._news:
            self.total_s = time.monotonic() - self._started
            self._error = error
            self._ended.set()
            self._news.notify()
