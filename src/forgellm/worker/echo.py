"""An engine without a model: it says the prompt back, word by word. For lifecycle tests and demos, never for claims.

Its knobs (ModelSource.options) make every fault a supervisor must survive. It samples nothing: of a request's sampling
only `max_tokens` matters here. Its embeddings have two dimensions: the number of words, and that of characters.
"""

import ctypes
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from forgellm import typed
from forgellm.errors import ConfigError, EmptyPrompt, from_wire
from forgellm.messages import (
    Chunk,
    Embedding,
    EngineOptions,
    FinishReason,
    ModelInfo,
    ModelSource,
    Prefill,
    Request,
    RequestFailed,
    Usage,
)
from forgellm.worker.engine import Progress, StepResult

LOAD_TICKS = 10


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`options` of an echo model. Times in seconds; 0 or None: off."""

    text: str | None = None  # the answer; None: the prompt itself
    tokens_per_s: float = 0.0  # per request; 0: flat out
    prefill_s: float = 0.0  # from joining to the first token, with progress reported
    load_s: float = 0.0
    load_error: str | None = None  # "code: message"
    die_in_load: str | None = None  # a signal's name
    allocate_bytes: int = 0  # held from load until the process ends
    cache_bytes: int = 0  # held from load until trim_caches()
    map_file: str | None = None  # mapped at load, its last byte read before each token: cut short, that is a SIGBUS
    grow_bytes_per_token: int = 0  # held from each token until its request ends
    leak_bytes_per_token: int = 0  # held from each token until the process ends
    crash_at_token: int | None = None  # of any request: the worker kills itself just before it
    crash_signal: str = "SIGABRT"
    print_at_crash: str | None = None  # to the worker's stderr, just before it kills itself for a request
    crash_if_prompt_has: str | None = None  # kills itself when such a request joins
    fail_at_token: int | None = None  # that request fails, the worker lives
    print_at_load: str | None = None  # to the worker's stderr, flushed
    modules_to_log: bool = False  # the names of all imported modules, to stderr, at load
    fork_at_load: bool = False  # a grandchild that keeps the worker's pipes open
    close_channel_at_prompt: str | None = None  # closes every descriptor, and lives on
    hang: Literal["gil", "native", "python"] | None = None  # in a call that keeps the GIL, in one that does not, a loop
    hang_if_prompt_has: str = "hang"  # hangs when such a request joins
    hang_in_load: bool = False
    ignore_unload: bool = False
    ignore_sigterm: bool = False


class _Running:
    """One request that is being echoed."""

    def __init__(self, request: Request, words: list[str], prompt_tokens: int, now: float, prefill_s: float) -> None:
        self.request = request
        self.words = words
        self.prompt_tokens = prompt_tokens
        self.joined = now
        self.due = now + prefill_s
        self.first: float | None = None
        self.sent = len(request.resume)
        self.grown: list[bytes] = []
        self.is_aborted = False

    def usage(self, now: float) -> Usage:
        first = self.first or now
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.sent,
            prefill_s=first - self.joined,
            decode_s=now - first,
        )


class EchoEngine:
    """The Engine protocol without mlx. A token is a word with the space before it; its id is its place."""

    def __init__(self) -> None:
        self._knobs = Knobs()
        self._running: dict[str, _Running] = {}
        self._held = b""
        self._cache = b""
        self._mapped: mmap.mmap | bytes = b"\0"
        self._leaked: list[bytes] = []

    def load(self, source: ModelSource, options: EngineOptions, progress: Progress) -> ModelInfo:
        self._knobs = _knobs(source.options)
        if self._knobs.print_at_load:
            sys.stderr.write(f"{self._knobs.print_at_load}\n")
        if self._knobs.modules_to_log:
            sys.stderr.write(f"modules: {' '.join(sorted(sys.modules))}\n")
        if self._knobs.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._knobs.map_file:
            with Path(self._knobs.map_file).open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._knobs.allocate_bytes:
            self._held = _memory(self._knobs.allocate_bytes)
        if self._knobs.cache_bytes:
            self._cache = _memory(self._knobs.cache_bytes)
        if self._knobs.fork_at_load and os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        for tick in range(LOAD_TICKS):
            progress(tick / LOAD_TICKS, "reading weights")
            time.sleep(self._knobs.load_s / LOAD_TICKS)
            if self._knobs.die_in_load and tick == LOAD_TICKS // 2:
                _die(self._knobs.die_in_load)
        if self._knobs.hang and self._knobs.hang_in_load:
            _hang(self._knobs.hang)
        if self._knobs.load_error:
            code, _, message = self._knobs.load_error.partition(": ")
            raise from_wire(code, message)
        return ModelInfo(
            context_length=options.context_length or 1 << 20,
            vocab_size=0,
            has_chat_template=True,
            parameters=0,
            quantization="none",
            layout="none",
            blas="none",
            device="echo",
            load_s=self._knobs.load_s,
            capabilities=("completion", "chat", "embedding"),
        )

    def add(self, request: Request) -> None:
        prompt = _prompt(request)
        knobs = self._knobs
        if knobs.crash_if_prompt_has and knobs.crash_if_prompt_has in prompt:
            self._crash()
        if knobs.hang and knobs.hang_if_prompt_has in prompt:
            _hang(knobs.hang)
        if knobs.close_channel_at_prompt and knobs.close_channel_at_prompt in prompt:
            os.closerange(3, 1 << 16)
            time.sleep(600)
        text = prompt if knobs.text is None else knobs.text
        words = _tokens(text) if request.inputs is None and not request.count_only else []
        now = time.monotonic()
        self._running[request.request_id] = _Running(request, words, len(prompt.split()), now, knobs.prefill_s)

    def abort(self, request_id: str) -> None:
        if request_id in self._running:
            self._running[request_id].is_aborted = True

    def has_work(self) -> bool:
        return bool(self._running)

    def step(self) -> StepResult:
        """One token for every request that is due; sleeps, at most 50 ms, when none is."""
        chunks: list[Chunk] = []
        news: list[Prefill | RequestFailed] = []
        now = time.monotonic()
        for request_id, running in list(self._running.items()):
            if running.is_aborted:
                chunks.append(self._finish(running, "abort", now))
            elif running.due <= now:
                self._advance(request_id, running, now, chunks, news)
            elif running.first is None:
                done = int(running.prompt_tokens * (now - running.joined) / self._knobs.prefill_s)
                news.append(Prefill(request_id, min(done, running.prompt_tokens), running.prompt_tokens))
        if not chunks:
            wait_s = min((r.due for r in self._running.values()), default=now) - time.monotonic()
            time.sleep(max(0.0, min(wait_s, 0.05)))
        return tuple(chunks), tuple(news)

    def memory(self) -> tuple[int, int]:
        grown = [*self._leaked, *(piece for running in self._running.values() for piece in running.grown)]
        return len(self._held) + sum(map(len, grown)), len(self._cache)

    def trim_caches(self) -> None:
        self._cache = b""

    def close(self) -> None:
        while self._knobs.ignore_unload:
            time.sleep(1)

    def _advance(
        self,
        request_id: str,
        running: _Running,
        now: float,
        chunks: list[Chunk],
        news: list[Prefill | RequestFailed],
    ) -> None:
        knobs = self._knobs
        if running.first is None:
            running.first = now
        if running.sent == knobs.fail_at_token:
            del self._running[request_id]
            news.append(RequestFailed(request_id, "generation_failed", "the fault knob fail_at_token ended it"))
            return
        if running.sent == knobs.crash_at_token:
            self._crash()
        max_tokens = running.request.sampling.max_tokens
        if running.sent >= len(running.words):
            chunks.append(self._finish(running, "stop", now))
            return
        if knobs.grow_bytes_per_token:
            running.grown.append(_memory(knobs.grow_bytes_per_token))
        if knobs.leak_bytes_per_token:
            self._leaked.append(_memory(knobs.leak_bytes_per_token))
        self._mapped[len(self._mapped) - 1]
        word = running.words[running.sent]
        running.sent += 1
        running.due = running.due + 1 / knobs.tokens_per_s if knobs.tokens_per_s else now
        if running.sent == max_tokens < len(running.words):
            chunks.append(self._finish(running, "length", now, word))
        elif running.sent == len(running.words):
            chunks.append(self._finish(running, "stop", now, word))
        else:
            chunks.append((request_id, word, (running.sent - 1,), None, None, None, None))

    def _crash(self) -> None:
        if self._knobs.print_at_crash:
            sys.stderr.write(f"{self._knobs.print_at_crash}\n")
        _die(self._knobs.crash_signal)

    def _finish(self, running: _Running, reason: FinishReason, now: float, word: str = "") -> Chunk:
        request_id = running.request.request_id
        del self._running[request_id]
        is_embedded = reason == "stop" and not running.request.count_only
        parts = _embeddings(running.request.inputs or ()) if is_embedded else None
        return request_id, word, (running.sent - 1,) if word else (), None, reason, running.usage(now), parts


def _knobs(options: Mapping[str, Any]) -> Knobs:
    try:
        return typed.convert(dict(options), Knobs)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of the echo engine: {error}") from error


def _memory(size_bytes: int) -> bytes:
    """That many bytes, each page of them written, so that the system charges for them."""
    return os.urandom(1 << 10) * (size_bytes >> 10)


def _embeddings(inputs: tuple[str | tuple[int, ...], ...]) -> tuple[Embedding, ...] | None:
    texts = [given if isinstance(given, str) else " ".join(map(str, given)) for given in inputs]
    found = (struct.pack("<2f", len(text.split()), len(text)) for text in texts)
    return tuple(Embedding(index, vector) for index, vector in enumerate(found)) or None


def _prompt(request: Request) -> str:
    if request.inputs is not None:
        text = " ".join(str(given) for given in request.inputs)
    elif request.messages is not None:
        text = str(request.messages[-1]["content"]) if request.messages else ""
    else:
        text = request.prompt if isinstance(request.prompt, str) else " ".join(map(str, request.prompt or ()))
    if not text.strip():
        raise EmptyPrompt("the prompt is empty; give at least one word", field="prompt")
    return text


def _tokens(text: str) -> list[str]:
    words = text.split(" ")
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)]


def _hang(how: Literal["gil", "native", "python"]) -> None:
    """Never comes back; but it ends with the process, whatever happens to its supervisor."""
    sleep = (ctypes.PyDLL if how == "gil" else ctypes.CDLL)(None).sleep
    while True:
        if how != "python":
            sleep(600)


def _die(signal_name: str) -> None:
    os.kill(os.getpid(), signal.Signals[signal_name])
    time.sleep(60)  # the signal ends the process before this does
