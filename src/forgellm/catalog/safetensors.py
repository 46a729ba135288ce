"""The header of a safetensors file, checked against the file's size. Never reads tensor data, never unpickles anything.

Layout, https://huggingface.co/docs/safetensors: u64 header length (little-endian), a JSON object that gives each
tensor a dtype, a shape and [begin, end) in the data that follow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from forgellm import typed
from forgellm.errors import ModelInvalid, UnsupportedFormat

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
_MAX_DIMENSIONS = 16
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says about one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of a safetensors file by name, in milliseconds, whatever the file holds.

    Raises ModelInvalid for a file that is cut, damaged or lies about its tensors, UnsupportedFormat for a pickle or zip
    under this name and for a dtype that mlx cannot read.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise _no_header(path, start, size)
            raw = file.read(length)
            if not raw.startswith(b"{"):
                raise _no_header(path, start, size)
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}") from error
    return _tensors(path, raw, size - 8 - length)


def parameters(tensors: Mapping[str, TensorInfo], group_size: Callable[[str], int]) -> int:
    """Number of weights. Of a quantised module, known by its `.scales`, each scale stands for `group_size(module)`."""
    total = 0
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        scales = tensors.get(f"{module}.scales")
        if scales is None or part not in ("weight", "scales", "biases"):
            total += tensor.elements
        elif part == "weight":
            total += scales.elements * group_size(module)
    return total


def _no_header(path: Path, start: bytes, size: int) -> ModelInvalid | UnsupportedFormat:
    if start.startswith(_PICKLES):
        return UnsupportedFormat(
            f"{path} is a pickle or zip file under the name of safetensors; it is not opened, since unpickling runs "
            "code. Convert the model to safetensors"
        )
    return ModelInvalid(f"{path} ({size} bytes) does not begin with a safetensors header; download it again")


def _tensors(path: Path, raw: bytes, data_bytes: int) -> dict[str, TensorInfo]:
    try:
        entries = typed.decode(raw, dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        decoder = msgspec.json.Decoder(typed.known(_Entry))
        decoded = {name: decoder.decode(entry) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelInvalid(f"{path}: the safetensors header is damaged ({error}); download the file again") from error
    spans = sorted((entry.data_offsets, name) for name, entry in decoded.items())
    used = 0
    for (begin, end), name in spans:
        entry = decoded[name]
        if entry.dtype not in _BITS:
            raise UnsupportedFormat(f"{path}: the tensor {name!r} has the dtype {entry.dtype!r}, which mlx cannot read")
        if len(entry.shape) > _MAX_DIMENSIONS or min(entry.shape, default=0) < 0:
            raise ModelInvalid(f"{path}: the tensor {name!r} has the shape {str(entry.shape)[:100]}")
        expected = math.prod(entry.shape) * _BITS[entry.dtype] // 8
        if begin < used or end > data_bytes or end - begin != expected:
            raise ModelInvalid(
                f"{path}: the tensor {name!r} of shape {entry.shape} and dtype {entry.dtype} is said to be at bytes "
                f"{begin} to {end} of {data_bytes}: the file is cut or damaged; download it again"
            )
        used = end
    return {name: TensorInfo(entry.dtype, tuple(entry.shape)) for name, entry in decoded.items()}
