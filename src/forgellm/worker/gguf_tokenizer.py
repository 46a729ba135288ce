"""Writes the tokenizer that a GGUF file describes in its metadata as tokenizer.json and tokenizer_config.json.

Must not guess: a pre-tokenizer that is not known is refused, since a wrong split only shows as bad text.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from forgellm.errors import ModelInvalid, UnsupportedFormat

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's token types

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r")
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_SPLIT = {**dict.fromkeys(_LLAMA3_NAMES, _LLAMA3), "qwen2": _QWEN2}
_PLAIN = ("gpt-2", "gpt2")

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")
"""Control tokens that end an answer, whatever the metadata names as eos; llama.cpp does the same by their text."""


def write_tokenizer(path: Path, metadata: Mapping[str, Any], folder: Path, vocab_size: int) -> None:
    """Write the tokenizer of the GGUF file `path` into `folder`, with the chat template and generation_config.json.

    Raises UnsupportedFormat for a tokenizer kind that is not known here, ModelInvalid for metadata that contradict
    themselves or the embedding's `vocab_size` rows.
    """
    vocabulary = _Vocabulary(path, metadata, vocab_size)
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise ModelInvalid(f"{path}: tokenizer.chat_template is not a text")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(path, metadata, vocabulary)
    elif kind == "llama":
        tokenizer = _sentencepiece(path, metadata, vocabulary)
    else:
        raise UnsupportedFormat(f"{path}: the tokenizer kind {kind!r} is not supported; gpt2 and llama are")
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in vocabulary.of_type(_CONTROL)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in vocabulary.of_type(_USER_DEFINED)])
    _add_bos(tokenizer, metadata, vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": vocabulary.named(name) for name in ("bos", "eos", "unknown", "padding")}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names["bos_token"],
        "eos_token": names["eos_token"],
        "unk_token": names["unknown_token"],
        "pad_token": names["padding_token"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get("llama.context_length", 2048),
        "chat_template": template,
    }
    _write(folder / "tokenizer_config.json", {key: value for key, value in config.items() if value is not None})
    _write(folder / "generation_config.json", {"eos_token_id": vocabulary.ends()})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")


class _Vocabulary:
    """Tokens, their types and the ids that the metadata give a name."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], vocab_size: int) -> None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not 0 < len(tokens) <= vocab_size or not isinstance(tokens[0], str):
            raise ModelInvalid(f"{path}: tokenizer.ggml.tokens is missing, or longer than the {vocab_size} embeddings")
        types = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
        if not isinstance(types, list) or len(types) != len(tokens):
            raise ModelInvalid(f"{path}: tokenizer.ggml.token_type does not have one type for each token")
        self.tokens: list[str] = tokens
        self.types: list[int] = types
        self.ids: dict[str, int] = {}
        for number, token in enumerate(tokens):
            self.ids.setdefault(token, number)
        self._metadata = metadata
        self._path = path

    def of_type(self, wanted: int) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind == wanted]

    def id_of(self, name: str) -> int | None:
        number = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and not (isinstance(number, int) and 0 <= number < len(self.tokens)):
            raise ModelInvalid(f"{self._path}: tokenizer.ggml.{name}_token_id is {number!r}, not a token")
        return number if number is None else int(number)

    def named(self, name: str) -> str | None:
        number = self.id_of(name)
        return None if number is None else self.tokens[number]

    def ends(self) -> list[int]:
        """Ids that end an answer: eos first."""
        found = [number for name in ("eos", "eot", "eom") if (number := self.id_of(name)) is not None]
        controls = set(self.of_type(_CONTROL))
        found += [self.ids[text] for text in _END_OF_TURN if text in controls]
        if not found:
            raise ModelInvalid(f"{self._path}: no token ends an answer: tokenizer.ggml.eos_token_id is missing")
        return list(dict.fromkeys(found))


def _byte_level(path: Path, metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> Tokenizer:
    """GPT-2 style BPE over bytes written as printable characters."""
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelInvalid(f"{path}: tokenizer.ggml.merges is missing")
    pairs = [(first, second) for first, _, second in (str(merge).partition(" ") for merge in merges)]
    known = vocabulary.ids
    if not all(first in known and second in known and first + second in known for first, second in pairs):
        raise ModelInvalid(f"{path}: tokenizer.ggml.merges names tokens that do not exist")
    pre = str(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    steps: list[Any]
    if pre in _SPLIT:
        steps = [pre_tokenizers.Split(Regex(_SPLIT[pre]), "isolated")]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    elif pre in _DIGITS_FIRST or pre in _PLAIN:
        steps = [pre_tokenizers.Digits(individual_digits=True)] if pre in _DIGITS_FIRST else []
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    else:
        raise UnsupportedFormat(f"{path}: the pre-tokenizer {pre!r} is not known; take the model's safetensors instead")
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=pairs, ignore_merges=_SPLIT.get(pre) == _LLAMA3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(path: Path, metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> Tokenizer:
    """SentencePiece BPE: the best-scored pair merges first, unknown characters fall back to bytes."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens) or not isinstance(scores[0], float):
        raise ModelInvalid(f"{path}: tokenizer.ggml.scores does not have one score for each token")
    ids = vocabulary.ids
    merges = []
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == _NORMAL:
            splits = [(token[:at], token[at:]) for at in range(1, min(len(token), 65))]
            pairs = sorted(((ids[a], ids[b], a, b) for a, b in splits if a in ids and b in ids))
            merges += [(-scores[number], order, a, b) for order, (_, _, a, b) in enumerate(pairs)]
    merges.sort(key=lambda merge: (merge[0], merge[1]))
    unknown = vocabulary.named("unknown") or next(iter(vocabulary.of_type(_UNKNOWN)), None)
    has_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids, merges=[(a, b) for _, _, a, b in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    steps = [normalizers.Prepend("▁")] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    ends = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    return tokenizer


def _add_bos(tokenizer: Tokenizer, metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> None:
    """Begin every text with bos where the file says so, or where llama.cpp takes it for granted."""
    bos = vocabulary.named("bos")
    by_default = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3_NAMES
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", by_default):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, vocabulary.ids[bos])]
        )
