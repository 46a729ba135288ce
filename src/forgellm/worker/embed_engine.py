"""The engine that embeds texts: batches of like length over all waiting requests, one piece of a batch at a time.

Knows no queues and no processes, and no architecture: worker.embedder runs the model.
"""

import gc
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer

from forgellm.errors import (
    ContextLengthExceeded,
    EmptyPrompt,
    InvalidRequest,
    ModelInvalid,
    Unsupported,
)
from forgellm.messages import (
    Chunk,
    Embedding,
    EngineOptions,
    ModelInfo,
    ModelSource,
    Prefill,
    Request,
    RequestFailed,
    Usage,
)
from forgellm.worker import blas as blas_names
from forgellm.worker import embedder
from forgellm.worker.engine import Progress, StepResult, failed
from forgellm.worker.load_error import check_finite, load_edge
from forgellm.worker.running import PrefillPace
from forgellm.worker.wired import clamp_wired_limit

WINDOW = 256
"""How many inputs of each request are looked at for some of like length."""

CHARACTERS_PER_TOKEN = 256
"""Longer texts than so many characters for each token of the context are too long, without being tokenized: that takes
0.6 s a megabyte, while all others wait."""


@dataclass(slots=True)
class _Running:
    """One request. `waiting` are the numbers of the inputs that are in no batch yet."""

    request_id: str
    inputs: list[tuple[int, ...]]
    waiting: deque[int]
    added: float
    joined: float | None = None
    vectors: dict[int, bytes] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.inputs))

    def usage(self, now: float) -> Usage:
        joined = now if self.joined is None else self.joined
        return Usage(prompt_tokens=self.tokens, completion_tokens=0, prefill_s=now - joined)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Inputs, as (request, number), on their way through the model."""

    members: list[tuple[_Running, int]]
    work: embedder.Pass
    padded_tokens: int
    started: float


class EmbedEngine:
    """One embedding model, many requests; implements worker.engine.Engine. All methods on one thread."""

    def __init__(self, blas: str = blas_names.STOCK) -> None:
        """`blas`: what worker.blas.activate answered; it decides the dtype layout, and is shown in the status."""
        self._blas = blas
        self._running: dict[str, _Running] = {}
        self._batch: _Batch | None = None
        self._last_words: list[Chunk] = []

    def load(self, source: ModelSource, options: EngineOptions, progress: Progress) -> ModelInfo:
        """See Engine.load."""
        started = time.monotonic()
        self._name = source.name
        self._embedder = embedder.load(
            source,
            options,
            is_blas_fast=blas_names.is_fast(self._blas),
            progress=lambda done, stage: progress(0.8 * done, stage),
        )
        limit = self._embedder.recipe.context_length
        self._context_length = min(limit, options.context_length or limit)
        self._pace = PrefillPace(options.prefill_chunk_s)
        clamp_wired_limit(mx, 2 * self._embedder.weights_bytes)
        progress(0.9, "warming up")
        with load_edge(source):  # weights that load may still not run
            self._tokenizer = _tokenizer(Path(source.path or ""), self._context_length)
            self._warm_up(16)
            if options.warm_up:
                self._warm_up(256)
        progress(1.0, "warming up")
        return ModelInfo(
            context_length=self._context_length,
            vocab_size=self._embedder.vocab_size,
            has_chat_template=False,
            parameters=self._embedder.parameters,
            quantization=self._embedder.quantization,
            layout=self._embedder.layout,
            blas=self._blas,
            device=mx.default_device().type.name,
            load_s=time.monotonic() - started,
            capabilities=("embedding",),
        )

    def _warm_up(self, tokens: int) -> None:
        """Embed one text of so many tokens: tells how fast the model is, and whether its numbers are numbers."""
        length = min(tokens, self._context_length)
        work = self._embedder.vectors([tuple(i % self._embedder.vocab_size for i in range(length))])
        started = time.monotonic()
        while (vectors := _advanced(work)) is None:
            continue
        self._pace.observe(length, time.monotonic() - started)
        check_finite(self._name, vectors)

    def add(self, request: Request) -> None:
        """See Engine.add. Texts get the special tokens of the tokenizer; token ids are taken as they are."""
        if request.inputs is None:
            raise Unsupported(
                f"{self._name} is an embedding model and cannot generate text; ask it for embeddings, or name another "
                "model",
                field="model",
            )
        if request.request_id in self._running:
            raise InvalidRequest(f"request_id {request.request_id} is already running", field="request_id")
        if not request.inputs:
            raise EmptyPrompt("there is nothing to embed: give at least one text", field="input")
        inputs = [self._tokens(given, number, request.truncate) for number, given in enumerate(request.inputs)]
        now = time.monotonic()
        if request.count_only:
            counted = Usage(prompt_tokens=sum(map(len, inputs)), completion_tokens=0)
            self._last_words.append((request.request_id, "", (), None, "stop", counted, None))
            return
        self._running[request.request_id] = _Running(request.request_id, inputs, deque(range(len(inputs))), now)

    def _tokens(self, given: str | tuple[int, ...], number: int, is_cut: bool) -> tuple[int, ...]:
        limit, name = self._context_length, f"input {number}"
        if not given:
            raise EmptyPrompt(f"{name} is empty; leave it out, or give a text", field="input")
        if isinstance(given, str):
            limit *= CHARACTERS_PER_TOKEN
        if len(given) > limit and not is_cut:
            raise self._too_long(name)
        given = given[:limit]
        if not isinstance(given, str):
            bad = next((token for token in given if not 0 <= token < self._embedder.vocab_size), None)
            if bad is not None:
                known = f"this model knows 0 to {self._embedder.vocab_size - 1}"
                raise InvalidRequest(f"{name} holds the token id {bad}; {known}", field="input")
            return given
        try:
            given.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{name} holds half of a surrogate pair, which is not text", field="input") from error
        encoding = self._tokenizer.encode(given)
        if encoding.overflowing and not is_cut:
            raise self._too_long(name)
        if not encoding.ids:
            raise EmptyPrompt(f"{name} has no token; leave it out, or give a text", field="input")
        return tuple(encoding.ids)

    def _too_long(self, name: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"{name} has more than the {self._context_length} tokens that {self._name} can read; shorten it, or ask "
            "for it to be cut (`truncate`)",
            field="input",
        )

    def abort(self, request_id: str) -> None:
        """See Engine.abort. A batch goes on for its other requests' sake."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        if self._batch and not any(self._is_wanted(member) for member, _ in self._batch.members):
            self._batch = None
        self._last_words.append((request_id, "", (), None, "abort", running.usage(time.monotonic()), None))

    def has_work(self) -> bool:
        return bool(self._running or self._last_words)

    def step(self) -> StepResult:
        """One piece of a batch: a layer of it, or a chunk of its tokens. See Engine.step."""
        chunks, self._last_words = self._last_words, []
        news: list[Prefill | RequestFailed] = []
        if self._running:
            batch = self._batch = self._batch or self._next_batch()
            try:
                vectors = _advanced(batch.work)
                if vectors is not None:
                    self._batch = None
                    self._take(batch, vectors, chunks, news)
            except Exception as error:  # noqa: BLE001 - whatever the model raised, the worker must go on
                self._fail(batch, error, news)
        return tuple(chunks), tuple(news)

    def memory(self) -> tuple[int, int]:
        return int(mx.get_active_memory()), int(mx.get_cache_memory())

    def trim_caches(self) -> None:
        gc.collect()
        mx.clear_cache()

    def close(self) -> None:
        self._batch = None
        self._running.clear()
        self._last_words.clear()
        self.__dict__.pop("_embedder", None)
        self.trim_caches()

    # Batches ---------------------------------------------------------------------------------------------------------

    def _next_batch(self) -> _Batch:
        """The first input of the request whose turn it is, with others of like length from all requests, as many as
        the pace allows. Requests take turns, so that one text does not wait behind somebody's thousand."""
        turn = next(running for running in self._running.values() if running.waiting)
        self._running[turn.request_id] = self._running.pop(turn.request_id)  # to the end of the line
        others = (running for running in self._running.values() if running is not turn)
        seen = [(r, number) for r in (turn, *others) for number in islice(r.waiting, WINDOW)]
        wanted = len(turn.inputs[turn.waiting[0]])
        seen.sort(key=lambda member: abs(len(member[0].inputs[member[1]]) - wanted))  # stable: the first stays first
        room = self._pace.tokens(1, 0, is_alone=False)
        members: list[tuple[_Running, int]] = []
        longest = 0
        for running, number in seen:
            longest = max(longest, len(running.inputs[number]))
            if members and longest * (len(members) + 1) > room:
                break
            members.append((running, number))
        now = time.monotonic()
        for running, number in members:
            running.waiting.remove(number)
            running.joined = running.joined or now
        texts = [running.inputs[number] for running, number in members]
        return _Batch(members, self._embedder.vectors(texts), len(texts) * max(map(len, texts)), now)

    def _take(self, batch: _Batch, vectors: mx.array, chunks: list[Chunk], news: list[Prefill | RequestFailed]) -> None:
        """Hand out what a batch gave, and end the requests that have all of theirs."""
        now = time.monotonic()
        self._pace.observe(batch.padded_tokens, now - batch.started)
        check_finite(self._name, vectors)
        raw = bytes(memoryview(vectors))  # type: ignore[arg-type]  # it has the buffer protocol
        size = len(raw) // len(batch.members)
        for place, (running, number) in enumerate(batch.members):
            running.vectors[number] = raw[place * size : (place + 1) * size]
        for running in {running.request_id: running for running, _ in batch.members}.values():
            if not self._is_wanted(running):
                continue
            done = sum(len(running.inputs[number]) for number in running.vectors)
            news.append(Prefill(running.request_id, done, running.tokens))
            if len(running.vectors) == len(running.inputs):
                del self._running[running.request_id]
                parts = tuple(Embedding(number, running.vectors[number]) for number in range(len(running.inputs)))
                chunks.append((running.request_id, "", (), None, "stop", running.usage(now), parts))

    def _fail(self, batch: _Batch, error: Exception, news: list[Prefill | RequestFailed]) -> None:
        """All requests of the batch end with what the model raised."""
        self._batch = None
        mx.clear_cache()  # the reason may have been memory
        for running, _ in batch.members:
            if self._is_wanted(running):
                del self._running[running.request_id]
                news.append(failed(running.request_id, "the embedding", error))

    def _is_wanted(self, running: _Running) -> bool:
        """Whether a request was not aborted meanwhile; another may have come under its id."""
        return self._running.get(running.request_id) is running


def _advanced(work: embedder.Pass) -> mx.array | None:
    """One piece more; the vectors if it was the last."""
    try:
        next(work)
    except StopIteration as end:
        vectors: mx.array = end.value
        return vectors
    return None


def _tokenizer(folder: Path, context_length: int) -> Tokenizer:
    """The folder's tokenizer, which marks what it cut, and pads nothing. Raises ModelInvalid."""
    try:
        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # it raises plain Exceptions
        raise ModelInvalid(f"{folder / 'tokenizer.json'} is not a tokenizer that can be read: {error}") from error
    found.no_padding()
    found.enable_truncation(context_length)
    return found
