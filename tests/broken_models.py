"""Model folders that are broken, lie, or want to run code, with the error that each must be refused with. The numbers
are those of the project's list of faults."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_files
from forgellm.errors import ModelError, ModelInvalid, UnsupportedFormat, UntrustedCode

Break = Callable[[Path, Path], None]
"""Breaks the model folder that it is given; code that runs would make the second path."""


class Evil:
    """Unpickling it makes the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def weights(content: bytes) -> Break:
    return lambda folder, _: _done((folder / "model.safetensors").write_bytes(content))


def tensor(**entry: Any) -> Break:
    sound = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return weights(model_files.safetensors({"a": {**sound, **entry}}, bytes(8)))


def config(**values: Any) -> Break:
    def change(folder: Path, _: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def text(name: str, content: str | bytes) -> Break:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder, _: _done((folder / name).write_bytes(raw))


def without(*names: str) -> Break:
    return lambda folder, _: _done([(folder / name).unlink() for name in names])


def pickled(name: str) -> Break:
    def change(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Evil(canary)))

    return change


def evil_module(**values: Any) -> Break:
    def change(folder: Path, canary: Path) -> None:
        (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()")
        config(**values)(folder, canary)

    return change


def zipped(folder: Path, _: Path) -> None:
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", "x")


def index(**files: str) -> Break:
    return text("model.safetensors.index.json", json.dumps({"weight_map": files}))


def _done(_: object) -> None:
    return None


BROKEN: dict[str, tuple[Break, type[ModelError], str]] = {
    "046 empty": (weights(b""), ModelInvalid, "model.safetensors"),
    "046 4 bytes": (weights(b"\x00" * 4), ModelInvalid, "model.safetensors"),
    "046 header only": (weights(struct.pack("<Q", 10)), ModelInvalid, "model.safetensors"),
    "046 truncated data": (weights(model_files.tensors({"a": (64,)})[:-1]), ModelInvalid, "cut or damaged"),
    "046 truncated header": (weights(model_files.tensors({"a": (64,)})[:20]), ModelInvalid, "model.safetensors"),
    "046 header of 2^60": (weights(model_files.safetensors({}, length=1 << 60)), ModelInvalid, "model.safetensors"),
    "046 garbage": (weights(b"\xff" * 100), ModelInvalid, "model.safetensors"),
    "046 garbage header": (weights(model_files.safetensors(b"{\xff\xfe}")), ModelInvalid, "damaged"),
    "046 deep header": (weights(model_files.safetensors(b'{"a":' + b"[" * 100_000)), ModelInvalid, "damaged"),
    "046 offset beyond": (tensor(data_offsets=[0, 1 << 40], shape=[1 << 38]), ModelInvalid, "cut or damaged"),
    "046 offset negative": (tensor(data_offsets=[-8, 0]), ModelInvalid, "'a'"),
    "046 offsets swapped": (tensor(data_offsets=[8, 0]), ModelInvalid, "'a'"),
    "046 not its shape": (tensor(shape=[3]), ModelInvalid, "'a'"),
    "046 shape 2^62": (tensor(shape=[1 << 62]), ModelInvalid, "'a'"),
    "046 shape overflows": (tensor(shape=[1 << 62, 1 << 62, 4]), ModelInvalid, "'a'"),
    "046 shape negative": (tensor(shape=[-1, -2]), ModelInvalid, "'a'"),
    "046 shape of text": (tensor(shape=["2"]), ModelInvalid, "damaged"),
    "046 unknown dtype": (tensor(dtype="F7"), UnsupportedFormat, "F7"),
    "046 overlap": (
        weights(
            model_files.safetensors(
                {n: {"dtype": "U8", "shape": [4], "data_offsets": o} for n, o in (("a", [0, 4]), ("b", [2, 6]))},
                bytes(6),
            )
        ),
        ModelInvalid,
        "'b'",
    ),
    "046 no weights": (without("model.safetensors"), ModelInvalid, "no model"),
    "046 index names a missing file": (index(a="model-00002-of-00002.safetensors"), ModelInvalid, "00002-of-00002"),
    "046 index names a file outside": (index(a="../../etc/passwd"), ModelInvalid, "etc/passwd"),
    "046 index names a missing tensor": (index(absent="model.safetensors"), ModelInvalid, "absent"),
    "046 index without a map": (text("model.safetensors.index.json", "{}"), ModelInvalid, "weight_map"),
    "048 config missing": (without("config.json"), ModelInvalid, "config.json"),
    "048 config empty": (text("config.json", ""), ModelInvalid, "config.json"),
    "048 config not JSON": (text("config.json", "{"), ModelInvalid, "config.json"),
    "048 config not UTF-8": (text("config.json", b"\xff\x00{}"), ModelInvalid, "config.json"),
    "048 config a list": (text("config.json", "[]"), ModelInvalid, "object"),
    "048 config nested 100k": (text("config.json", '{"a":' * 100_000), ModelInvalid, "config.json"),
    "048 config a huge number": (text("config.json", '{"a":' + "9" * 5000 + "}"), ModelInvalid, "config.json"),
    "048 config of 9 MB": (text("config.json", " " * (9 << 20)), ModelInvalid, "config.json"),
    "048 no model_type": (config(model_type=None), ModelInvalid, "model_type"),
    "048 model_type a list": (config(model_type=["llama"]), ModelInvalid, "model_type"),
    "048 model_type unknown": (config(model_type="llama99"), UnsupportedFormat, "llama99"),
    "048 model_type a helper": (config(model_type="cache"), UnsupportedFormat, "cache"),
    "048 model_type a package": (config(model_type="__init__"), UnsupportedFormat, "__init__"),
    "048 model_type a path": (config(model_type="../../x"), UnsupportedFormat, "x"),
    "048 model_type dotted": (config(model_type="..utils"), UnsupportedFormat, "utils"),
    "049 heads 0": (config(num_attention_heads=0), ModelInvalid, "num_attention_heads"),
    "049 layers -1": (config(num_hidden_layers=-1), ModelInvalid, "num_hidden_layers"),
    "049 hidden a word": (config(hidden_size="big"), ModelInvalid, "hidden_size"),
    "049 hidden missing": (config(hidden_size=None), ModelInvalid, "hidden_size"),
    "049 vocab 2^40": (config(vocab_size=1 << 40), ModelInvalid, "vocab_size"),
    "049 layers a float": (config(num_hidden_layers=2.5), ModelInvalid, "num_hidden_layers"),
    "049 layers true": (config(num_hidden_layers=True), ModelInvalid, "num_hidden_layers"),
    "049 epsilon infinite": (config(rms_norm_eps=float("inf")), ModelInvalid, "rms_norm_eps"),
    "049 rope 0": (config(rope_theta=0), ModelInvalid, "rope_theta"),
    "049 kv heads a list": (config(num_key_value_heads=[2, 2]), ModelInvalid, "num_key_value_heads"),
    "049 sizes in a nested section only": (
        config(hidden_size=None, text_config={"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40}),
        ModelInvalid,
        "hidden_size",
    ),
    "050 a million layers": (config(num_hidden_layers=10**6), ModelInvalid, "num_hidden_layers"),
    "050 more layers than weights": (config(num_hidden_layers=1000), ModelInvalid, "another model"),
    "050 wider than its weights": (config(intermediate_size=1 << 20), ModelInvalid, "another model"),
    "050 more words than weights": (config(vocab_size=1 << 20), ModelInvalid, "another model"),
    "051 model_file": (evil_module(model_file="evil.py"), UntrustedCode, "model_file"),
    "051 auto_map of an unknown type": (
        evil_module(model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model"}),
        UntrustedCode,
        "evil",
    ),
    "052 tokenizer auto_map": (
        text("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
        UntrustedCode,
        "tokenizer_config.json",
    ),
    "052 tokenizer auto_map in the config": (
        evil_module(auto_map={"AutoTokenizer": "evil.T"}),
        UntrustedCode,
        "auto_map",
    ),
    "053 .bin only": (pickled("pytorch_model.bin"), UnsupportedFormat, "pytorch_model.bin"),
    "053 .pt only": (pickled("model.pt"), UnsupportedFormat, "model.pt"),
    "053 pickle as safetensors": (pickled("model.safetensors"), UnsupportedFormat, "pickle"),
    "053 zip as safetensors": (zipped, UnsupportedFormat, "zip"),
    "055 no tokenizer": (without("tokenizer.json"), ModelInvalid, "tokenizer"),
    "055 tokenizer garbage": (text("tokenizer.json", b"\xff\x00garbage"), ModelInvalid, "tokenizer.json"),
    "055 tokenizer empty": (text("tokenizer.json", ""), ModelInvalid, "tokenizer.json"),
    "055 tokenizer a list": (text("tokenizer.json", "[]"), ModelInvalid, "tokenizer.json"),
    "055 tokenizer without a model": (text("tokenizer.json", "{}"), ModelInvalid, "tokenizer.json"),
    "055 tokenizer nested 100k": (text("tokenizer.json", '{"model":' * 100_000), ModelInvalid, "tokenizer.json"),
    "055 tokenizer config not JSON": (text("tokenizer_config.json", "{"), ModelInvalid, "tokenizer_config.json"),
}
