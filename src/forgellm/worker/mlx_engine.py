"""The engine that runs MLX models: continuous batching on mlx-lm's BatchGenerator, one step at a time.

Knows no queues and no processes. Every use of mlx-lm's generator is in this file: it is semi-public, and changes.
"""

import gc
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator

from forgellm.errors import InvalidRequest, Unsupported
from forgellm.messages import (
    Chunk,
    EngineOptions,
    FinishReason,
    ModelInfo,
    ModelSource,
    Prefill,
    Request,
    RequestFailed,
    TokenLogprobs,
    Usage,
)
from forgellm.worker import blas as blas_names
from forgellm.worker import cpu_math, mlx_load, sampling, steps
from forgellm.worker.answers import Answers
from forgellm.worker.engine import Progress, StepResult, failed
from forgellm.worker.load_error import check_finite, load_edge
from forgellm.worker.prefix_cache import PrefixCache, has_window, new_cache
from forgellm.worker.prompt import PromptBuilder
from forgellm.worker.running import MAX_CHUNK_TOKENS, PrefillPace, Running, guarded_processors, guarded_sampler
from forgellm.worker.wired import clamp_wired_limit

cpu_math.install()
steps.install()
PROMPTS_TOGETHER = 8
WARM_UP_STEPS = 3


@dataclass(slots=True)
class _Batch:
    """All requests with the same `max_kv_size`: caches of different sizes cannot share a batch."""

    max_kv_size: int | None
    generator: BatchGenerator
    running: dict[int, Running] = field(default_factory=dict)
    prefilling: set[int] = field(default_factory=set)


class MLXEngine:
    """One MLX model, many requests; implements worker.engine.Engine. All methods on one thread."""

    def __init__(self, blas: str = blas_names.STOCK) -> None:
        """`blas`: what worker.blas.activate answered; it decides the dtype layout, and is shown in the status."""
        self._blas = blas
        self._batches: dict[int | None, _Batch] = {}
        self._where: dict[str, tuple[_Batch, int]] = {}
        self._last_words: list[Chunk] = []

    # Loading ---------------------------------------------------------------------------------------------------------

    def load(self, source: ModelSource, options: EngineOptions, progress: Progress) -> ModelInfo:
        """See Engine.load. `progress` rises from 0 to 1 through "fetching", "converting", "reading weights" and
        "warming up"."""
        started = time.monotonic()
        loaded = mlx_load.load(
            source,
            options,
            is_blas_fast=blas_names.is_fast(self._blas),
            progress=lambda done, stage: progress(0.9 * done, stage),
        )
        progress(0.9, "warming up")
        self._model = loaded.model
        self._options = options
        limit = loaded.context_length
        self._context_length = min(limit, options.context_length or limit)
        self._prefixes = PrefixCache(options.prefix_cache_bytes)
        self._pace = PrefillPace(options.prefill_chunk_s)
        weights = sum(value.nbytes for _, value in tree_flatten(loaded.model.parameters()))
        clamp_wired_limit(mx, weights + weights // 4 + options.prefix_cache_bytes)
        eos = loaded.tokenizer.eos_token_ids
        self._eos = [[int(token)] for token in sorted(eos)]
        with load_edge(source):  # weights that load may still not run
            self._vocab_size = self._probe(source.name)
            self._answers = Answers(loaded.tokenizer, self._vocab_size)
            self._prompts = PromptBuilder(loaded.tokenizer, self._vocab_size, self._context_length)
            self._cap_for(options.max_kv_size)
            if options.warm_up:
                self._warm_up()
        progress(1.0, "warming up")
        return ModelInfo(
            context_length=self._context_length,
            vocab_size=self._vocab_size,
            has_chat_template=self._prompts.has_template,
            parameters=loaded.parameters,
            quantization=loaded.quantization,
            layout=loaded.layout,
            blas=self._blas,
            device=mx.default_device().type.name,
            load_s=time.monotonic() - started,
            capabilities=self._answers.capabilities,
        )

    def _probe(self, name: str) -> int:
        """The width of the model's logits, after checking that they are numbers."""
        logits = self._model(mx.array([[0, 1, 2, 3]]), cache=new_cache(self._model, None))
        check_finite(name, logits)
        return int(logits.shape[-1])

    def _warm_up(self) -> None:
        """Run one prompt, and two more that join it: mlx compiles its kernels for each kind of shape now, or reads them
        from its own cache. Tells how fast prompts go."""
        generator = self._new_generator()
        with generator.stats() as stats:
            for lengths in ((16,), (3, 7)):
                prompts = [[i % self._vocab_size for i in range(length)] for length in lengths]
                generator.insert(prompts, max_tokens=[WARM_UP_STEPS] * len(prompts))
                while not generator.next()[1]:
                    continue
            while generator.next()[1]:
                continue
        generator.close()
        self._pace.observe(stats.prompt_tokens, stats.prompt_time)
        mx.clear_cache()

    def _new_generator(self, max_kv_size: int | None = None) -> BatchGenerator:
        # Several prompts in rotating windows come out wrong in mlx-lm 0.32.2 when a chunk has one token of each (the
        # test of random traffic shows it), so prompts of such models and windows are read one by one.
        together = 1 if has_window(new_cache(self._model, max_kv_size)) else PROMPTS_TOGETHER
        return BatchGenerator(
            self._model,
            stop_tokens=self._eos,
            sampler=sampling.greedy,
            completion_batch_size=self._options.max_batch,
            prefill_batch_size=min(together, self._options.max_batch),
            prefill_step_size=MAX_CHUNK_TOKENS,
        )

    # Requests --------------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """See Engine.add. The answer is cut to what the context length leaves room for.

        What an earlier life produced is read like the prompt; position, penalties, stop strings and half-decoded text
        go on from there, so that the answer is the one that life would have given."""
        wanted, resume = request.sampling, list(request.resume)
        if request.request_id in self._where:
            raise InvalidRequest(f"request_id {request.request_id} is already running", field="request_id")
        if request.inputs is not None:
            raise Unsupported("inputs: this model writes text; embeddings need an embedding model", field="inputs")
        prompt = self._prompts.tokens(request)
        if request.count_only:
            counted = Usage(prompt_tokens=len(prompt), completion_tokens=0)
            self._last_words.append((request.request_id, "", (), None, "stop", counted, None))
            return
        room = self._prompts.room(request, prompt)
        bad = next((token for token, _ in wanted.logit_bias if not 0 <= token < self._vocab_size), None)
        if bad is not None:
            raise InvalidRequest(
                f"logit_bias names token {bad}; this model knows 0 to {self._vocab_size - 1}", field="logit_bias"
            )
        cap = self._cap_for(request.max_kv_size)
        stream, kept_to = self._answers.begin(request, prompt)
        changes = sampling.processors(wanted, len(prompt)) + kept_to
        tokens = prompt + resume
        cache, cached = self._prefixes.take(tokens, cap)
        running = Running(
            request_id=request.request_id,
            stream=stream,
            prompt_tokens=len(prompt),
            cached_tokens=min(cached, len(prompt)),
            completion_tokens=len(resume),
            top_logprobs=wanted.logprobs,
            raw_logprobs=deque() if wanted.logprobs is not None else None,
            added=time.monotonic(),
            unread_tokens=len(tokens) - cached,
        )
        batch = self._batches.get(cap)
        if batch is None:
            batch = self._batches[cap] = _Batch(cap, self._new_generator(cap))
        (uid,) = batch.generator.insert(
            [tokens[cached:]],
            max_tokens=[min(wanted.max_tokens, room) - len(resume)],
            caches=[cache if cache is not None else new_cache(self._model, cap)],
            all_tokens=[tokens[:cached]],
            samplers=[guarded_sampler(running, wanted, position=len(resume))],
            logits_processors=[guarded_processors(running, changes)],
        )
        batch.running[uid] = running
        batch.prefilling.add(uid)
        self._where[request.request_id] = (batch, uid)

    def _cap_for(self, max_kv_size: int | None) -> int | None:
        """The smaller of the request's and the worker's cap; None if it would never bind. Raises Unsupported."""
        caps = [cap for cap in (max_kv_size, self._options.max_kv_size) if cap is not None]
        cap = min(caps, default=None)
        if cap is None or cap >= self._context_length:
            return None
        if cap < 1:
            raise InvalidRequest(f"max_kv_size must be at least 1, not {cap}", field="max_kv_size")
        new_cache(self._model, cap)  # raises if a layer cannot be capped; allocates nothing
        return cap

    def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        found = self._where.get(request_id)
        if found is None:
            return
        batch, uid = found
        running = batch.running[uid]
        self._end(batch, uid, is_in_batch=True)
        usage = running.usage(time.monotonic())
        text = running.stream.finish()
        self._last_words.append((request_id, text, (), None, "abort", usage, running.stream.take_parts()))

    def has_work(self) -> bool:
        return bool(self._where or self._last_words)

    def step(self) -> StepResult:
        """See Engine.step."""
        chunks, self._last_words = self._last_words, []
        news: list[Prefill | RequestFailed] = []
        busy = [batch for batch in self._batches.values() if batch.running]
        for batch in busy:
            self._advance(batch, len(busy), chunks, news)
        return tuple(chunks), tuple(news)

    def memory(self) -> tuple[int, int]:
        return int(mx.get_active_memory()), int(mx.get_cache_memory())

    def trim_caches(self) -> None:
        self._prefixes.clear()
        gc.collect()
        mx.clear_cache()

    def close(self) -> None:
        for batch in self._batches.values():
            batch.generator.close()
        self._batches.clear()
        self._where.clear()
        self._last_words.clear()
        for name in ("_model", "_prefixes", "_prompts", "_answers"):
            self.__dict__.pop(name, None)
        gc.collect()
        mx.clear_cache()

    # One step --------------------------------------------------------------------------------------------------------

    def _advance(self, batch: _Batch, batches: int, chunks: list[Chunk], news: list[Prefill | RequestFailed]) -> None:
        started = time.monotonic()
        try:
            prompts, answers = self._next(batch, batches)
        except Exception as error:  # noqa: BLE001 - whatever the model raised, the worker must go on with new requests
            self._fail_batch(batch, error, news)
            return
        for response in prompts:
            running = batch.running[response.uid]
            if running.joined is None:
                running.joined = started
            if response.end_of_prompt:
                batch.prefilling.discard(response.uid)
            running.unread_tokens = response.progress[1] - response.progress[0]
            done = min(running.cached_tokens + response.progress[0], running.prompt_tokens)
            news.append(Prefill(running.request_id, done, running.prompt_tokens))
        now = time.monotonic()
        for response in answers:
            running = batch.running[response.uid]
            try:
                if running.failure is not None:
                    raise running.failure
                chunks.append(self._chunk(batch, running, response, now))
            except Exception as error:  # noqa: BLE001 - one request's failure must not end the others'
                self._end(batch, response.uid, is_in_batch=response.finish_reason is None)
                news.append(failed(running.request_id, "the generation", error))

    def _next(self, batch: _Batch, batches: int) -> tuple[list[Any], list[Any]]:
        """One call of the generator: a decode step, and a prefill chunk if prompts wait."""
        generator = batch.generator
        if not batch.prefilling:
            return generator.next()  # type: ignore[no-any-return]  # mlx-lm has no types
        prompts = min(len(batch.prefilling), generator.prefill_batch_size)
        is_alone = batches == 1 and len(batch.prefilling) == len(batch.running)
        unread = max(batch.running[uid].unread_tokens for uid in batch.prefilling)
        generator.prefill_step_size = self._pace.tokens(prompts * batches, unread, is_alone=is_alone)
        with generator.stats() as stats:
            result = generator.next()
        self._pace.observe(stats.prompt_tokens, stats.prompt_time)
        return result  # type: ignore[no-any-return]  # mlx-lm has no types

    def _chunk(self, batch: _Batch, running: Running, response: Any, now: float) -> Chunk:
        token: int = response.token
        finish: FinishReason | None = response.finish_reason
        running.completion_tokens += 1
        running.last_token = now
        if running.first_token is None:
            running.first_token = now
        logprobs: tuple[TokenLogprobs, ...] | None = None
        raw = running.raw_logprobs.popleft() if running.raw_logprobs is not None else None
        if finish == "stop":  # an end-of-sequence token: counted, never shown
            text = running.stream.finish()
        else:
            if raw is not None and running.top_logprobs is not None:
                logprobs = (sampling.token_logprobs(raw[0], token, running.top_logprobs, self._answers.texts.text_of),)
            text = running.stream.push(token)
            if running.stream.is_stopped:
                finish = "stop"
            elif finish is not None:
                text += running.stream.finish()
        parts = running.stream.take_parts()
        if finish is None:
            return (running.request_id, text, (token,), logprobs, None, None, parts)
        if finish == "stop" and running.stream.has_calls:
            finish = "tool_calls"
        if response.prompt_cache is not None:
            self._prefixes.put(response.all_tokens, response.prompt_cache, batch.max_kv_size)
        self._end(batch, response.uid, is_in_batch=response.finish_reason is None)
        return (running.request_id, text, (token,), logprobs, finish, running.usage(now), parts)

    def _end(self, batch: _Batch, uid: int, *, is_in_batch: bool) -> None:
        """Free the place of a request; what the model knows of it goes into the prefix cache."""
        running = batch.running.pop(uid)
        batch.prefilling.discard(uid)
        del self._where[running.request_id]
        if is_in_batch:
            keep = self._prefixes.is_on and running.failure is None and running.joined is not None
            removed = batch.generator.remove([uid], return_prompt_caches=keep)
            if uid in removed:
                cache, tokens = removed[uid]
                self._prefixes.put(tokens, cache, batch.max_kv_size)
        if not batch.running and batch.max_kv_size is not None:
            self._discard(batch)

    def _discard(self, batch: _Batch) -> None:
        """Forget a batch and its generator; the next request makes a new one."""
        batch.generator.close()
        self._batches.pop(batch.max_kv_size, None)

    def _fail_batch(self, batch: _Batch, error: Exception, news: list[Prefill | RequestFailed]) -> None:
        """The generator raised: its state is unknown, so all its requests fail and it is thrown away."""
        for running in batch.running.values():
            news.append(failed(running.request_id, "the generation", error))
            del self._where[running.request_id]
        batch.running.clear()
        batch.prefilling.clear()
        self._discard(batch)
        self._prefixes.clear()  # the reason may have been memory
        mx.clear_cache()
