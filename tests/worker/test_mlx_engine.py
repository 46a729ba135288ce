"""The MLX engine on a tiny random model: batching, sampling, stopping, prefix reuse, limits, and what goes wrong."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from forgellm.errors import ContextLengthExceeded, InvalidRequest
from forgellm.messages import Chunk, Prefill, Request, RequestFailed, Sampling, Stopped
from forgellm.worker.mlx_engine import MLXEngine
from forgellm.worker.running import MAX_CHUNK_TOKENS, MIN_CHUNK_TOKENS, PrefillPace

pytestmark = pytest.mark.model

TOKENS = 24
EOS_ID = 2
TEXTS = [f"tell me story number {i} about the sea" + " and the fox" * i for i in range(8)]


@pytest.fixture(scope="module")
def engine(load_engine: Callable[..., MLXEngine], tiny_folder: Path) -> MLXEngine:
    """No prefix cache, so that tests do not see each other's prompts."""
    return load_engine(tiny_folder, prefix_cache_bytes=0)


def chat(request_id: str, text: str = TEXTS[0], **sampling: Any) -> Request:
    message = {"role": "user", "content": text}
    return Request(
        request_id=request_id,
        model="tiny",
        messages=(message,),
        sampling=Sampling(**{"max_tokens": TOKENS, **sampling}),
    )


def raw(request_id: str, prompt: str | tuple[int, ...], *, max_kv_size: int | None = None, **sampling: Any) -> Request:
    wanted = Sampling(**{"max_tokens": TOKENS, **sampling})
    return Request(request_id=request_id, model="tiny", prompt=prompt, max_kv_size=max_kv_size, sampling=wanted)


class Answers:
    """Everything that came out of some steps, by request."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[Chunk]] = defaultdict(list)
        self.news: list[Prefill | RequestFailed] = []

    def text(self, request_id: str) -> str:
        return "".join(chunk[1] for chunk in self.chunks[request_id])

    def tokens(self, request_id: str) -> list[int]:
        return [token for chunk in self.chunks[request_id] for token in chunk[2]]

    def last(self, request_id: str) -> Chunk:
        return self.chunks[request_id][-1]

    def failures(self) -> list[RequestFailed]:
        return [item for item in self.news if isinstance(item, RequestFailed)]


def step(engine: MLXEngine, answers: Answers) -> None:
    chunks, news = engine.step()
    answers.news += news
    for chunk in chunks:
        answers.chunks[chunk[0]].append(chunk)


def run(engine: MLXEngine, *requests: Request) -> Answers:
    answers = Answers()
    for request in requests:
        engine.add(request)
    while engine.has_work():
        step(engine, answers)
    return answers


def alone(engine: MLXEngine, request: Request) -> str:
    return run(engine, request).text(request.request_id)


# Batches ------------------------------------------------------------------------------------------------------------


def test_greedy_answers_are_the_same_alone_and_in_a_batch(engine: MLXEngine) -> None:
    requests = [chat(str(i), text) for i, text in enumerate(TEXTS)]
    together = run(engine, *requests)
    assert [together.text(r.request_id) for r in requests] == [alone(engine, r) for r in requests]
    assert len({together.text(r.request_id) for r in requests}) == 8


def test_a_seed_gives_the_same_text_alone_and_in_a_batch_of_eight(engine: MLXEngine) -> None:
    """Among greedy, filtered and penalised neighbours: none may touch the randomness of another."""
    knobs: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 20},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 1.0, "repetition_penalty": 1.2},
        {"presence_penalty": 0.7, "frequency_penalty": 0.3},
        {"temperature": 1.0, "logit_bias": ((10, 3.0),)},
    ]
    requests = [chat(str(i), seed=7, **k) for i, k in enumerate(knobs)]
    together = run(engine, *requests)
    assert [together.text(r.request_id) for r in requests] == [alone(engine, r) for r in requests]


def test_another_seed_gives_another_text(engine: MLXEngine) -> None:
    texts = {alone(engine, chat("r", temperature=1.0, seed=seed)) for seed in range(4)}
    assert len(texts) == 4


def test_a_request_joins_a_running_batch(engine: MLXEngine) -> None:
    expected = [alone(engine, chat("a", TEXTS[0])), alone(engine, chat("b", TEXTS[5]))]
    answers = Answers()
    engine.add(chat("a", TEXTS[0]))
    while len(answers.chunks["a"]) < 5:
        step(engine, answers)
    engine.add(chat("b", TEXTS[5]))
    while engine.has_work():
        step(engine, answers)
    assert [answers.text("a"), answers.text("b")] == expected
    assert answers.last("a")[4] is not None


def test_more_requests_than_max_batch_wait_and_are_all_answered(
    load_engine: Callable[..., MLXEngine], tiny_folder: Path
) -> None:
    answers = run(load_engine(tiny_folder, max_batch=2), *(chat(str(i), max_tokens=4) for i in range(5)))
    assert [answers.last(str(i))[4] for i in range(5)] == ["length"] * 5


# Chunks -------------------------------------------------------------------------------------------------------------


def test_only_the_last_chunk_has_a_finish_reason_and_a_usage(engine: MLXEngine) -> None:
    answers = run(engine, chat("r"))
    chunks = answers.chunks["r"]
    assert all(chunk[3:] == (None, None, None, None) for chunk in chunks[:-1])
    *_, reason, usage, _ = chunks[-1]
    assert usage is not None
    assert (reason, usage.completion_tokens, len(answers.tokens("r"))) == ("length", TOKENS, TOKENS)
    assert usage.prefill_s > 0
    assert usage.decode_s > 0


def test_an_end_of_sequence_token_ends_the_text_and_is_not_shown(engine: MLXEngine) -> None:
    answers = run(engine, chat("r", logit_bias=((EOS_ID, 1e6),), logprobs=1))
    assert (answers.text("r"), answers.tokens("r"), answers.last("r")[3:5]) == ("", [EOS_ID], (None, "stop"))


def test_a_stop_string_over_several_tokens_ends_the_text_before_it(engine: MLXEngine) -> None:
    full = alone(engine, chat("r"))
    stop = full[9:14]
    answers = run(engine, chat("r", stop=("never there", stop)))
    assert answers.text("r") == full[: full.index(stop)]
    assert answers.last("r")[4] == "stop"
    assert len(answers.tokens("r")) > len([c for c in answers.chunks["r"] if c[1]])  # some token's text was held back


def test_text_held_for_a_stop_string_is_flushed_at_the_length_limit(engine: MLXEngine) -> None:
    full = alone(engine, chat("r"))
    assert alone(engine, chat("r", stop=(full[-1] + "\x00 and more",))) == full


def test_logprobs_are_the_log_softmax_of_the_models_raw_logits(engine: MLXEngine) -> None:
    """Penalties and filters change the choice, not what the model thought."""
    prompt = tuple(range(40, 60))
    for knobs in (
        {},
        {"temperature": 1.0, "top_k": 3, "seed": 1},
        {"repetition_penalty": 1.5, "logit_bias": ((9, 5.0),)},
    ):
        answers = run(engine, raw("r", prompt, logprobs=3, max_tokens=6, **knobs))
        tokens = answers.tokens("r")
        logits = engine._model(mx.array([[*prompt, *tokens]]))[0]
        expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for i, chunk in enumerate(answers.chunks["r"]):
            assert chunk[3] is not None
            ((token, _, logprob, top),) = chunk[3]
            row = expected[len(prompt) - 1 + i]
            assert token == tokens[i]
            assert logprob == pytest.approx(row[token].item(), abs=1e-3)
            assert [value for _, _, value in top] == pytest.approx(sorted(row.tolist(), reverse=True)[:3], abs=1e-3)
            assert top[0][0] == mx.argmax(row).item()


# Prefill, prefixes, limits ------------------------------------------------------------------------------------------


def test_a_long_prompt_is_read_in_chunks_and_others_go_on_between(
    load_engine: Callable[..., MLXEngine], tiny_folder: Path
) -> None:
    engine = load_engine(tiny_folder, prefill_chunk_s=0.0)  # the smallest chunks
    answers = Answers()
    engine.add(chat("short", max_tokens=40))
    while not answers.chunks["short"]:
        step(engine, answers)
    engine.add(raw("long", tuple(range(3, 203))))
    while not answers.chunks["long"]:
        step(engine, answers)
    done = [item.done for item in answers.news if isinstance(item, Prefill) and item.request_id == "long"]
    assert done == [*range(16, 199, 16), 199, 200]
    assert len(answers.chunks["short"]) >= len(done)
    engine.abort("short")
    engine.abort("long")


def test_the_pace_fits_chunks_into_their_time() -> None:
    pace = PrefillPace(0.5)
    assert pace.tokens(1, 5000, is_alone=False) == MIN_CHUNK_TOKENS
    pace.observe(16, 0.08)  # 200 tokens/s
    assert pace.tokens(1, 5000, is_alone=False) == 100
    assert pace.tokens(4, 5000, is_alone=False) == 25
    assert pace.tokens(1, 5000, is_alone=True) == 200
    for _ in range(20):
        pace.observe(100, 1.0)
        pace.tokens(1, 5000, is_alone=False)
    assert pace.tokens(1, 5000, is_alone=False) == pytest.approx(50, abs=1)
    pace.observe(2, 1.0)  # the last bit of a prompt says nothing about the pace
    assert pace.tokens(1, 5000, is_alone=False) == pytest.approx(50, abs=1)
    pace.observe(10_000, 0.01)
    assert pace.tokens(1, 5000, is_alone=False) == MAX_CHUNK_TOKENS


def test_a_chunk_runs_half_longer_where_that_spares_a_short_last_one() -> None:
    pace = PrefillPace(0.5)
    pace.tokens(1, 5000, is_alone=True)
    pace.observe(100, 1.0)
    assert pace.tokens(4, 36, is_alone=True) == 36
    assert pace.tokens(4, 38, is_alone=True) == 25
    assert pace.tokens(1, 60, is_alone=False) == 50, "streams that wait are not kept waiting longer"


def test_a_known_prefix_is_not_read_again_and_changes_nothing(
    load_engine: Callable[..., MLXEngine], tiny_folder: Path, engine: MLXEngine
) -> None:
    cached = load_engine(tiny_folder)
    first = run(cached, chat("a"))
    history = (
        {"role": "user", "content": TEXTS[0]},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": "and then?"},
    )
    follow_up = Request(request_id="b", model="tiny", messages=history, sampling=Sampling(max_tokens=TOKENS))
    second = run(cached, follow_up, chat("c"))
    usage = {key: second.last(key)[5] for key in "bc"}
    prompt_tokens = first.last("a")[5].prompt_tokens  # type: ignore[union-attr]
    assert usage["b"] is not None
    assert usage["c"] is not None
    assert usage["b"].cached_tokens >= prompt_tokens - 3
    assert prompt_tokens - 3 <= usage["c"].cached_tokens < prompt_tokens
    assert second.text("b") == alone(engine, follow_up)
    assert second.text("c") == first.text("a")
    reads = [item for item in second.news if isinstance(item, Prefill) and item.request_id == "c"]
    assert reads[-1].done == reads[-1].total == prompt_tokens


def test_the_prefix_cache_stays_within_its_bytes(load_engine: Callable[..., MLXEngine], tiny_folder: Path) -> None:
    limit = 64 * 1024
    engine = load_engine(tiny_folder, prefix_cache_bytes=limit)
    for i, text in enumerate(TEXTS):
        run(engine, chat(str(i), text))
        assert engine._prefixes.nbytes <= limit
    assert engine._prefixes.nbytes > 0


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(engine: MLXEngine) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"512 tokens.*context length is 512"):
        engine.add(raw("r", (5,) * 512))
    assert not engine.has_work()


def test_an_answer_ends_where_the_context_does(engine: MLXEngine) -> None:
    answers = run(engine, raw("r", (5,) * 508, max_tokens=100))
    assert (len(answers.tokens("r")), answers.last("r")[4]) == (4, "length")


def test_a_context_length_of_ones_own_never_exceeds_the_models(
    load_engine: Callable[..., MLXEngine], tiny_folder: Path
) -> None:
    small = load_engine(tiny_folder, context_length=20)
    assert len(run(small, raw("r", (5,) * 15)).tokens("r")) == 5
    large = load_engine(tiny_folder, context_length=1 << 20)
    with pytest.raises(ContextLengthExceeded):
        large.add(raw("r", (5,) * 512))


def test_max_kv_size_is_a_window_over_the_last_tokens(engine: MLXEngine) -> None:
    """As long as everything fits it changes nothing; then the beginning is forgotten, in a batch as alone."""
    prompt = tuple(range(40, 60))
    plain = run(engine, raw("r", prompt)).tokens("r")
    assert run(engine, raw("r", prompt, max_kv_size=100)).tokens("r") == plain
    capped = run(engine, raw("r", prompt, max_kv_size=16)).tokens("r")
    assert len(capped) == TOKENS
    assert capped != plain
    together = run(engine, raw("a", prompt, max_kv_size=16), raw("b", prompt), raw("c", prompt[:9], max_kv_size=16))
    assert (together.tokens("a"), together.tokens("b")) == (capped, plain)
    assert together.tokens("c") == run(engine, raw("c", prompt[:9], max_kv_size=16)).tokens("c")
    assert set(engine._batches) <= {None}


def test_bad_requests_are_refused_and_leave_no_work(engine: MLXEngine) -> None:
    for request, field in (
        (raw("r", ""), "prompt"),
        (chat("r", logit_bias=((384, 1.0),)), "logit_bias"),
        (raw("r", "x", max_kv_size=0), "max_kv_size"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            engine.add(request)
        assert caught.value.field == field
    assert not engine.has_work()


# What goes wrong ----------------------------------------------------------------------------------------------------


def test_an_abort_ends_a_request_at_once_with_its_usage(engine: MLXEngine) -> None:
    expected = alone(engine, chat("b", TEXTS[3]))
    answers = Answers()
    engine.add(chat("a", max_tokens=400))
    engine.add(chat("b", TEXTS[3]))
    while len(answers.chunks["a"]) < 3:
        step(engine, answers)
    engine.abort("a")
    engine.abort("never was there")
    step(engine, answers)
    *_, reason, usage, _ = answers.last("a")
    assert (reason, usage.completion_tokens if usage else None) == ("abort", 3)
    while engine.has_work():
        step(engine, answers)
    assert answers.text("b") == expected
    assert len(answers.chunks["a"]) == 4


def test_an_abort_during_prefill_ends_it_and_frees_its_memory(
    load_engine: Callable[..., MLXEngine], tiny_folder: Path
) -> None:
    engine = load_engine(tiny_folder, prefill_chunk_s=0.0, prefix_cache_bytes=0)
    answers = Answers()
    engine.add(raw("r", (5,) * 300))
    step(engine, answers)
    engine.add(raw("waiting", (6,) * 300))
    engine.abort("r")
    engine.abort("waiting")
    step(engine, answers)
    assert [answers.last(key)[4] for key in ("r", "waiting")] == ["abort", "abort"]
    assert not engine.has_work()
    assert alone(engine, chat("next")) != ""


def test_chaos_014_an_exception_in_one_request_ends_only_that_request(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgellm.worker import sampling

    def broken(*_args: Any) -> Any:
        raise ZeroDivisionError("a bad processor")

    expected = alone(engine, chat("good"))
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "processors", lambda wanted, _n: [broken] if wanted.presence_penalty else [])
        patch.setattr(sampling, "keep_likely", broken)
        answers = run(
            engine, chat("good"), chat("processor", presence_penalty=1.0), chat("sampler", temperature=1.0, seed=1)
        )
    assert answers.text("good") == expected
    failed = {item.request_id: item for item in answers.failures()}
    assert set(failed) == {"processor", "sampler"}
    assert failed["processor"].code == "generation_failed"
    assert "a bad processor" in failed["processor"].message
    assert alone(engine, chat("good")) == expected


def test_a_detokenizer_that_raises_ends_only_its_request(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(engine, chat("good"))
    engine.add(chat("bad", TEXTS[4]))
    _, uid = engine._where["bad"]
    stream = engine._where["bad"][0].running[uid].stream
    monkeypatch.setattr(stream, "_decoder", None)
    answers = run(engine, chat("good"))
    assert [item.request_id for item in answers.failures()] == ["bad"]
    assert answers.text("good") == expected


def test_a_step_that_raises_fails_its_requests_and_the_engine_goes_on(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlx_lm.server's generation thread dies for good here (mlx-lm#1505)."""
    expected = alone(engine, chat("r"))
    for request_id in ("a", "b"):
        engine.add(chat(request_id))
    answers = Answers()
    step(engine, answers)
    with monkeypatch.context() as patch:
        patch.setattr(
            type(engine._model), "__call__", lambda *_a, **_k: (_ for _ in ()).throw(RuntimeError("[METAL] x"))
        )
        step(engine, answers)
    assert {item.request_id for item in answers.failures()} == {"a", "b"}
    assert not engine.has_work()
    assert alone(engine, chat("r")) == expected


def test_memory_comes_back_when_requests_end(engine: MLXEngine) -> None:
    """Eight prompts of 300 tokens hold over half a megabyte of keys and values while they run."""

    def settled() -> int:
        for batch in engine._batches.values():
            mx.synchronize(batch.generator.stream)  # the step that was computed ahead
        return engine.memory()[0]

    run(engine, chat("r"))
    before = settled()
    run(engine, *(raw(str(i), (7 + i,) * 300, max_tokens=8) for i in range(8)))
    assert settled() - before < 100_000


def test_trimmed_caches_cost_time_and_change_nothing(load_engine: Callable[..., MLXEngine], tiny_folder: Path) -> None:
    """An answer is half-way when the prefix cache, of which it uses a part, is dropped under it."""
    engine = load_engine(tiny_folder, prefix_cache_bytes=1 << 20)
    first = run(engine, chat("r"))
    assert run(engine, chat("r")).last("r")[5].cached_tokens  # type: ignore[union-attr]
    engine.add(chat("r"))
    answers = Answers()
    step(engine, answers)
    engine.trim_caches()
    while engine.has_work():
        step(engine, answers)
    assert answers.text("r") == first.text("r")
    engine.trim_caches()
    assert not run(engine, chat("r")).last("r")[5].cached_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", [1, 2])
def test_random_traffic_answers_what_each_request_gets_alone(
    engine: MLXEngine, load_engine: Callable[..., MLXEngine], tiny_folder: Path, seed: int
) -> None:
    """Shared prefixes, windows, stop strings, seeds, aborts and small chunks, all at once: nothing may show."""
    rng = random.Random(seed)
    busy = load_engine(tiny_folder, prefix_cache_bytes=200_000, prefill_chunk_s=0.0, max_batch=3)
    stems = [tuple(rng.randrange(3, 384) for _ in range(rng.randrange(2, 100))) for _ in range(3)]
    knobs: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "top_p": 0.95},
        {"repetition_penalty": 1.3},
        {"stop": ("e",)},
    ]
    requests: dict[str, Request] = {}
    answers = Answers()
    while len(requests) < 16 or busy.has_work():
        if len(requests) < 16 and rng.random() < 0.4:
            name, stem = str(len(requests)), rng.choice(stems)
            prompt = (*stem[: rng.randrange(1, len(stem) + 1)], rng.randrange(3, 384))
            cap = rng.choice([None, None, 20, 64])
            requests[name] = raw(
                name, prompt, max_kv_size=cap, max_tokens=rng.randrange(1, 20), seed=len(requests), **rng.choice(knobs)
            )
            busy.add(requests[name])
        if requests and rng.random() < 0.05:
            busy.abort(rng.choice(list(requests)))
        step(busy, answers)
    assert answers.failures() == []
    assert any(answers.last(name)[5].cached_tokens for name in requests)  # type: ignore[union-attr]
    for name, request in requests.items():
        expected, got = run(engine, request), answers.tokens(name)
        if answers.last(name)[4] == "abort":
            assert got == expected.tokens(name)[: len(got)]
        else:
            assert (got, answers.text(name)) == (expected.tokens(name), expected.text(name))


def test_the_stop_string_that_ended_an_answer_is_named(engine: MLXEngine) -> None:
    whole = run(engine, chat("a")).text("a")
    stop = whole[4:6]
    chunk = run(engine, chat("b", stop=("never seen", stop))).last("b")
    assert (chunk[4], chunk[6]) == ("stop", (Stopped(stop),))


def test_counting_a_prompt_runs_nothing(engine: MLXEngine) -> None:
    counted = dataclasses.replace(chat("a"), count_only=True)
    answers = run(engine, counted)
    (chunk,) = answers.chunks["a"]
    assert (chunk[1], chunk[2], chunk[4], answers.news) == ("", (), "stop", [])
    really = run(engine, chat("b")).last("b")[5]
    assert chunk[5] is not None
    assert really is not None
    assert chunk[5].prompt_tokens == really.prompt_tokens > 0
    assert chunk[5].completion_tokens == 0


def test_a_request_may_want_a_shorter_context_and_a_longer_one_is_the_models_own(engine: MLXEngine) -> None:
    prompt = (5,) * 10
    short = run(engine, dataclasses.replace(raw("a", prompt), context_length=13)).last("a")
    assert short[4] == "length"
    assert short[5] is not None
    assert short[5].completion_tokens == 3
    with pytest.raises(ContextLengthExceeded, match="context length is 10"):
        engine.add(dataclasses.replace(raw("b", prompt), context_length=10))
    with pytest.raises(ContextLengthExceeded, match=f"context length is {engine._context_length}"):
        engine.add(dataclasses.replace(raw("c", (5,) * engine._context_length), context_length=1 << 30))
