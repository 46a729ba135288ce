"""The embedding engine on a tiny random BERT, against the same arithmetic written plainly in numpy."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgellm.errors import (
    ContextLengthExceeded,
    EmptyPrompt,
    ForgeLLMError,
    InvalidRequest,
    ModelInvalid,
    Unsupported,
)
from forgellm.messages import Chunk, Embedding, EngineOptions, ModelSource, Prefill, Request, RequestFailed

pytestmark = pytest.mark.model

TEXTS = ("the man is eating bread", "music", "a quick brown fox is playing the drums the river the mountain", "a girl")

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """load(options={...}, **tiny_embedder.build's) -> an EmbedEngine."""
    import tiny_embedder
    from forgellm.worker.embed_engine import EmbedEngine

    def make(options: dict[str, Any] | None = None, **how: Any) -> EmbedEngine:
        engine = EmbedEngine()
        folder = tiny_embedder.build(tmp_path / "model", **how)
        source = ModelSource(name="tiny", kind="folder", task="embed", path=str(folder))
        engine.info = engine.load(source, EngineOptions(**(options or {})), lambda _done, _stage: None)  # type: ignore[attr-defined]  # for the tests
        return engine

    return make


def run(engine: Any) -> tuple[dict[str, Chunk], list[Prefill | RequestFailed]]:
    """The last chunk of each request, and the news."""
    chunks, told = {}, []
    while engine.has_work():
        some, news = engine.step()
        chunks.update({chunk[0]: chunk for chunk in some})
        told += news
    return chunks, told


def vectors(chunk: Chunk) -> np.ndarray:
    parts = [part for part in chunk[6] or () if isinstance(part, Embedding)]
    assert [part.index for part in parts] == list(range(len(parts)))
    return np.stack([np.frombuffer(part.vector, "<f4") for part in parts])


def embed(engine: Any, *inputs: Any, **more: Any) -> np.ndarray:
    engine.add(Request(request_id="r", model="tiny", inputs=inputs, **more))
    return vectors(run(engine)[0]["r"])


def reference(ids: list[int], pooling: str = "mean", normalize: bool = True, first: int = 0) -> np.ndarray:
    """BERT in numpy, in double precision, one text."""
    import tiny_embedder as tiny

    w = {name: value.astype(np.float64) for name, value in tiny.tensors(0).items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    places = np.arange(len(ids)) + first
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][places]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(tiny.LAYERS):
        name = f"encoder.layer.{number}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}").reshape(len(ids), tiny.HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(tiny.HIDDEN // tiny.HEADS)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(x + linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = linear(x, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    found = {"mean": x.mean(0), "cls": x[0], "max": x.max(0), "lasttoken": x[-1]}[pooling]
    return found / np.linalg.norm(found) if normalize else found


def ids_of(text: str) -> list[int]:
    import tiny_embedder as tiny

    return [2, *(tiny.VOCAB.get(word, 1) for word in text.split()), 3]


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ({}, 0),
        ({"pooling": "cls"}, 0),
        ({"pooling": "max", "normalize": False}, 0),
        ({"pooling": "lasttoken", "prefix": "bert."}, 0),
        ({"kind": "roberta", "prefix": "roberta.", "config": {"pad_token_id": 1}}, 2),
        ({"kind": "xlm-roberta"}, 1),
    ],
)
def test_vectors_are_those_of_the_plain_arithmetic_alone_and_in_a_batch(
    how: dict[str, Any], first: int, load: Load
) -> None:
    engine = load(**how)
    together = embed(engine, *TEXTS)
    alone = np.concatenate([embed(engine, text) for text in TEXTS])
    plain = {"pooling": how.get("pooling", "mean"), "normalize": how.get("normalize", True), "first": first}
    expected = np.stack([reference(ids_of(text), **plain) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - expected).max() < 1e-4
    assert np.allclose(np.linalg.norm(together, axis=1), 1) == plain["normalize"]


def test_token_ids_are_taken_as_they_are_and_texts_get_special_tokens(load: Load) -> None:
    engine = load()
    of_text, of_ids, bare = embed(engine, TEXTS[0], tuple(ids_of(TEXTS[0])), tuple(ids_of(TEXTS[0])[1:-1]))
    assert np.abs(of_text - of_ids).max() < 1e-5
    assert np.abs(bare - reference(ids_of(TEXTS[0])[1:-1])).max() < 1e-4


def test_the_model_says_what_it_is(load: Load) -> None:
    info = load(options={"context_length": 20}).info
    assert (info.capabilities, info.context_length, info.has_chat_template) == (("embedding",), 20, False)


def test_requests_that_wait_together_are_batched_and_each_gets_its_own(load: Load) -> None:
    engine = load()
    for name, texts in {"a": TEXTS, "b": TEXTS[:1], "c": TEXTS[::-1]}.items():
        engine.add(Request(request_id=name, model="tiny", inputs=texts))
    chunks, news = run(engine)
    expected = embed(engine, *TEXTS)
    for name, order in {"a": expected, "b": expected[:1], "c": expected[::-1]}.items():
        assert np.abs(vectors(chunks[name]) - order).max() < 1e-5
    usage = chunks["a"][5]
    total = sum(len(ids_of(text)) for text in TEXTS)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (total, 0)
    assert Prefill("a", total, total) in news


def test_a_short_request_does_not_wait_behind_a_long_one(load: Load) -> None:
    engine = load(options={"prefill_chunk_s": 0.0})  # sixteen tokens a batch
    engine.add(Request(request_id="long", model="tiny", inputs=TEXTS * 20))
    engine.add(Request(request_id="short", model="tiny", inputs=("a girl is eating",)))
    ended = []
    while engine.has_work():
        ended += [chunk[0] for chunk in engine.step()[0]]
    assert ended == ["short", "long"]


def test_an_abort_in_the_middle_of_a_batch_ends_that_request_alone(load: Load) -> None:
    engine = load()
    engine.add(Request(request_id="a", model="tiny", inputs=TEXTS))
    engine.add(Request(request_id="b", model="tiny", inputs=TEXTS))
    engine.step()
    engine.abort("a")
    engine.abort("nobody")
    chunks, _ = run(engine)
    assert (chunks["a"][4], chunks["a"][6], chunks["b"][4]) == ("abort", None, "stop")
    engine.add(Request(request_id="c", model="tiny", inputs=TEXTS))
    engine.step()
    engine.abort("c")
    assert run(engine)[0]["c"][4] == "abort"


LONG = "fox " * 100


def test_an_input_that_is_too_long_is_refused_or_cut(load: Load) -> None:
    engine = load()
    for given in (LONG, "x" * 100_000, tuple([5] * 100)):
        with pytest.raises(ContextLengthExceeded, match="input 1 has more than the 48 tokens"):
            embed(engine, "a", given)
    (of_text,) = embed(engine, LONG, truncate=True)
    assert np.abs(of_text - reference(ids_of("fox " * 46))).max() < 1e-4
    (of_ids,) = embed(engine, tuple([5] * 100), truncate=True)
    assert np.abs(of_ids - reference([5] * 48)).max() < 1e-4


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"inputs": ()}, EmptyPrompt),
        ({"inputs": ("a", "")}, EmptyPrompt),
        ({"inputs": ((),)}, EmptyPrompt),
        ({"inputs": ("\ud800",)}, InvalidRequest),
        ({"inputs": ((1, 10_000),)}, InvalidRequest),
        ({"prompt": "hello"}, Unsupported),
        ({"messages": ({"role": "user", "content": "hello"},)}, Unsupported),
    ],
)
def test_what_cannot_be_embedded_is_refused_before_any_work(
    request_: dict[str, Any], error: type[ForgeLLMError], load: Load
) -> None:
    engine = load()
    with pytest.raises(error):
        engine.add(Request(request_id="r", model="tiny", **request_))
    assert not engine.has_work()


def test_a_failure_in_the_model_ends_the_requests_of_that_batch_and_the_engine_goes_on(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load()
    engine.add(Request(request_id="a", model="tiny", inputs=TEXTS))
    with monkeypatch.context() as patch:
        patch.setattr("forgellm.worker.embed_engine.check_finite", lambda *_: 1 / 0)
        _, news = run(engine)
    assert [item.code for item in news if isinstance(item, RequestFailed)] == ["generation_failed"]
    assert embed(engine, *TEXTS).shape == (4, 32)


def test_a_model_whose_tensors_do_not_fit_its_config_fails_to_load_with_a_sentence(load: Load) -> None:
    with pytest.raises(ModelInvalid, match="tiny cannot be loaded"):
        load(config={"type_vocab_size": 7})


def test_half_precision_and_quantised_weights_are_read(load: Load, tmp_path: Path) -> None:
    import mlx.core as mx

    import tiny_embedder

    expected = embed(load(), *TEXTS)
    packed: dict[str, mx.array] = {}
    for name, value in tiny_embedder.tensors(0).items():
        if value.ndim == 2 and not name.startswith("embeddings"):
            parts = mx.quantize(mx.array(value), group_size=32, bits=8)
            named = zip(("weight", "scales", "biases"), parts, strict=True)
            packed |= {name.replace("weight", part): value for part, value in named}
        else:
            packed[name] = mx.array(value).astype(mx.float16)
    engine = load(config={"quantization": {"group_size": 32, "bits": 8}})
    mx.save_safetensors(str(tmp_path / "model" / "model.safetensors"), packed)
    source = ModelSource(name="tiny", kind="folder", task="embed", path=str(tmp_path / "model"))
    info = engine.load(source, EngineOptions(), lambda _done, _stage: None)
    assert (info.quantization, info.layout) == ("8-bit", "native 8-bit")
    assert (embed(engine, *TEXTS) * expected).sum(1).min() > 0.99


def test_a_decoder_gives_its_last_tokens_state_whatever_the_batch_and_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen3

    import tiny_embedder
    from forgellm.worker.embed_engine import EmbedEngine

    monkeypatch.setattr("forgellm.worker.embedder.CHUNK_TOKENS", 5)
    decoder = {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    config = {**tiny_embedder.a_config("qwen3"), **decoder, "tie_word_embeddings": True}
    folder = tiny_embedder.build(tmp_path / "model", kind="qwen3", pooling="lasttoken", config=config)
    mx.random.seed(0)
    model = qwen3.Qwen3Model(qwen3.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    engine = EmbedEngine()
    source = ModelSource(name="tiny", kind="folder", task="embed", path=str(folder))
    engine.load(source, EngineOptions(), lambda _done, _stage: None)
    states = [np.array(model(mx.array([ids_of(text)])))[0, -1] for text in TEXTS]
    expected = np.stack([state / np.linalg.norm(state) for state in states])
    assert np.abs(embed(engine, *TEXTS) - expected).max() < 1e-5
