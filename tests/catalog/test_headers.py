"""The parsers of foreign headers: nothing but a ForgeLLMError may leave them, whatever the bytes."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import model_files
from forgellm.catalog import gguf, gguf_llama, safetensors
from forgellm.errors import ForgeLLMError, ModelInvalid, UnsupportedFormat
from model_files import ARRAY, STRING, U32, U64

METADATA = model_files.llama_metadata()
TENSORS = model_files.llama_tensors()
SOUND_GGUF = model_files.gguf(METADATA, TENSORS)
SOUND_SAFETENSORS = model_files.tensors(model_files.llama_shapes())

bounded = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
edits = st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=9)), max_size=4)


def edited(content: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    out = bytearray(content)
    for at, new in changes:
        out[at : at + len(new)] = new
    return bytes(out[: len(out) - cut])


def check_gguf(path: Path) -> gguf.GGUFHeader:
    header = gguf.read_header(path)
    gguf_llama.check(path, header)
    return header


@bounded
@given(changes=edits, cut=st.integers(0, 4000))
def test_a_damaged_gguf_header_gives_an_error_of_ours_or_a_sound_model(
    changes: list[tuple[int, bytes]], cut: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(edited(SOUND_GGUF, changes, cut))
    try:
        header = check_gguf(path)
    except ForgeLLMError:
        return
    assert all(tensor.offset + tensor.data_bytes <= path.stat().st_size for tensor in header.tensors)


@bounded
@given(changes=edits, cut=st.integers(0, 4000))
def test_chaos_046_a_damaged_safetensors_header_gives_an_error_of_ours_or_a_sound_one(
    changes: list[tuple[int, bytes]], cut: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(edited(SOUND_SAFETENSORS, changes, cut))
    try:
        tensors = safetensors.read_header(path)
    except ForgeLLMError:
        return
    assert sum(tensor.elements for tensor in tensors.values()) <= path.stat().st_size


@bounded
@given(content=st.binary(max_size=200).filter(lambda content: content.strip() != b"}"))  # "{}" is an empty header
def test_any_bytes_are_refused_with_an_error_of_ours(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for start in (b"", b"GGUF\x03\x00\x00\x00", struct.pack("<Q", len(content)) + b"{"):
        path.write_bytes(start + content)
        with pytest.raises(ForgeLLMError):
            check_gguf(path)
    path.write_bytes(struct.pack("<Q", len(content) + 1) + b"{" + content)
    with pytest.raises(ForgeLLMError):
        safetensors.read_header(path)


def test_a_sound_gguf_header_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(SOUND_GGUF)
    header = check_gguf(path)
    assert header.architecture == "llama"
    assert header.metadata["tokenizer.ggml.tokens"][:2] == ["t0", "t1"]
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {n: t[0] for n, t in TENSORS.items()}
    assert header.parameters == sum(tensor.elements for tensor in header.tensors)


def test_metadata_of_every_type_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    numbers = {0: 255, 1: -1, 2: 65535, 3: -2, 4: 7, 5: -7, 6: 0.5, 7: True, 10: 1 << 63, 11: -(1 << 62), 12: 0.25}
    layouts = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(numbers))
    for kind, number in numbers.items():
        out += model_files.string(f"k{kind}") + struct.pack("<I" + layouts[kind], kind, number)
    path.write_bytes(out)
    assert gguf.read_header(path).metadata == {f"k{kind}": number for kind, number in numbers.items()}


def header_with(**changes: Any) -> bytes:
    return model_files.gguf({**METADATA, **{k.replace("__", "."): v for k, v in changes.items()}}, TENSORS)


def tensors_with(**changes: Any) -> bytes:
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return model_files.gguf(METADATA, {n: t for n, t in {**TENSORS, **named}.items() if t is not None})


def patched(old: bytes, new: bytes) -> bytes:
    assert old in SOUND_GGUF
    return SOUND_GGUF.replace(old, new, 1)


def placed(offset: int) -> bytes:
    """The first tensor said to be at `offset`."""
    name = model_files.string("output_norm.weight")
    at = SOUND_GGUF.index(name) + len(name) + 4 + 8 + 4
    return SOUND_GGUF[:at] + struct.pack("<Q", offset) + SOUND_GGUF[at + 8 :]


BAD_GGUF: dict[str, tuple[bytes, type[ForgeLLMError], str]] = {
    "empty": (b"", ModelInvalid, "cut off"),
    "magic": (b"GGML" + SOUND_GGUF[4:], ModelInvalid, "not a GGUF"),
    "version 1": (model_files.gguf(METADATA, TENSORS, version=1), UnsupportedFormat, "version 1"),
    "big-endian": (model_files.gguf(METADATA, TENSORS, version=3 << 24), UnsupportedFormat, "version"),
    "cut data": (SOUND_GGUF[:-1], ModelInvalid, "not inside the file"),
    "cut header": (SOUND_GGUF[:300], ModelInvalid, "cut off"),
    "2^60 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), ModelInvalid, "tensors"),
    "2^60 keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), ModelInvalid, "keys"),
    "a string of 2^60 bytes": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), ModelInvalid, "string"),
    "an array of 2^40 strings": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + model_files.string("k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 40),
        ModelInvalid,
        "cut off",
    ),
    "an array of 2^60 numbers": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + model_files.string("k") + struct.pack("<IIQ", ARRAY, U64, 1 << 60),
        ModelInvalid,
        "cut off",
    ),
    "an array of arrays": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + model_files.string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1),
        ModelInvalid,
        "unknown type",
    ),
    "a value of type 99": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + model_files.string("k") + struct.pack("<I", 99),
        ModelInvalid,
        "unknown type",
    ),
    "alignment 0": (header_with(general__alignment=(U32, 0)), ModelInvalid, "alignment"),
    "alignment a word": (header_with(general__alignment=(STRING, "32")), ModelInvalid, "alignment"),
    "offset beyond": (placed(1 << 50), ModelInvalid, "output_norm.weight"),
    "offset 2^64": (placed((1 << 64) - 32), ModelInvalid, "output_norm.weight"),
    "offset unaligned": (placed(33), ModelInvalid, "output_norm.weight"),
    "five dimensions": (tensors_with(x=model_files.zeros(1, 1, 1, 1, 1)), ModelInvalid, "5 dimensions"),
    "no elements": (tensors_with(x=((0,), "F32", b"")), ModelInvalid, "shape"),
    "half a block": (tensors_with(x=((33, 2), "Q4_0", bytes(64))), ModelInvalid, "Q4_0"),
    "a K-quant": (
        patched(struct.pack("<QQI", 32, 40, 0), struct.pack("<QQI", 32, 40, 14)),
        UnsupportedFormat,
        "another quantisation",
    ),
    "other architecture": (header_with(general__architecture=(STRING, "qwen2")), UnsupportedFormat, "qwen2"),
    "mixture of experts": (header_with(llama__expert_count=(U32, 8)), UnsupportedFormat, "experts"),
    "other tokenizer": (header_with(tokenizer__ggml__model=(STRING, "bert")), UnsupportedFormat, "bert"),
    "no layers": (header_with(llama__block_count=(U32, 0)), ModelInvalid, "block_count"),
    "too many layers": (header_with(llama__block_count=(U32, 1 << 31)), ModelInvalid, "block_count"),
    "one layer more": (header_with(llama__block_count=(U32, 3)), ModelInvalid, "blk.2"),
    "no heads": (header_with(llama__attention__head_count=(U32, 0)), ModelInvalid, "head_count"),
    "heads that do not divide": (header_with(llama__attention__head_count=(U32, 7)), ModelInvalid, "go together"),
    "heads a list": (
        header_with(llama__attention__head_count_kv=(ARRAY, (U32, [2, 2]))),
        ModelInvalid,
        "head_count_kv",
    ),
    "epsilon not a number": (
        header_with(llama__attention__layer_norm_rms_epsilon=(model_files.F32, float("nan"))),
        ModelInvalid,
        "layer_norm_rms_epsilon",
    ),
    "rope base a word": (header_with(llama__rope__freq_base=(STRING, "x")), ModelInvalid, "freq_base"),
    "rotates half a head": (header_with(llama__rope__dimension_count=(U32, 4)), UnsupportedFormat, "rotary"),
    "no embedding": (tensors_with(token_embd__weight=None), ModelInvalid, "token_embd.weight"),
    "no layer tensor": (tensors_with(blk__1__ffn_up__weight=None), ModelInvalid, "blk.1.ffn_up.weight"),
    "wrong shape": (tensors_with(output_norm__weight=model_files.zeros(64)), ModelInvalid, "output_norm.weight"),
    "unknown tensor": (tensors_with(blk__0__attn_q__bias=model_files.zeros(32)), UnsupportedFormat, "attn_q.bias"),
    "small output": (tensors_with(output__weight=model_files.zeros(32, 8)), ModelInvalid, "output.weight"),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_a_bad_gguf_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    content, error, names = BAD_GGUF[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ForgeLLMError) as caught:
        check_gguf(path)
    assert type(caught.value) is error
    assert "bad.gguf" in caught.value.message
    assert names in caught.value.message


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(SOUND_GGUF.replace(b"blk.1.attn_q.weight", b"blk.1.attn_v.weight", 1))
    with pytest.raises(ModelInvalid, match="same name"):
        check_gguf(path)
