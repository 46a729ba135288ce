"""The header of a GGUF file: metadata and tensor table, read with bounds on everything. Never reads tensor data.

Layout (little-endian), https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic "GGUF", u32 version, u64 tensor
count, u64 metadata count, the metadata pairs, the tensor table, then the tensor data at a multiple of the alignment.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from forgellm.errors import ModelInvalid, UnsupportedFormat

MAGIC = b"GGUF"


class TensorType(NamedTuple):
    """How one ggml type stores its elements: blocks of `block_elements` in `block_bytes` bytes."""

    name: str
    block_elements: int
    block_bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    8: TensorType("Q8_0", 32, 34),
}
"""By ggml's type number, those that can be converted."""

_MAX_TENSORS = 1 << 16
_MAX_PAIRS = 1 << 16
_MAX_HEADER_BYTES = 1 << 28
_MAX_STRING_BYTES = 1 << 24
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor. `shape` as llama.cpp has it, fastest dimension first; `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: TensorType
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        return self.elements // self.kind.block_elements * self.kind.block_bytes


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a GGUF file says about itself. `header_bytes` is where the tensor table ends."""

    metadata: Mapping[str, Any]
    tensors: tuple[GGUFTensor, ...]
    header_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)


class _Reader:
    """Reads from the header and refuses to go beyond the file or the size that a header may have."""

    def __init__(self, file: IO[bytes], path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._left = min(size, _MAX_HEADER_BYTES)
        self.position = 0

    def take(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._left else b""
        if len(data) != count:
            raise ModelInvalid(
                f"{self._path}: the GGUF header is cut off or damaged at byte {self.position}; download the file again"
            )
        self._left -= count
        self.position += count
        return data

    def scalar(self, kind: int) -> Any:
        layout = _STRUCTS[kind]
        return layout.unpack(self.take(layout.size))[0]

    def string(self) -> str:
        length = self.scalar(10)
        if length > _MAX_STRING_BYTES:
            raise ModelInvalid(f"{self._path}: a string of {length} bytes in the GGUF header; download the file again")
        return self.take(length).decode("utf-8", "replace")

    def value(self, key: str) -> Any:
        kind = self.scalar(4)
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        return self.scalar(self._known(kind, key))

    def _array(self, key: str) -> list[Any]:
        kind, count = self.scalar(4), self.scalar(10)
        if kind == _STRING:
            if count * 8 > self._left:  # each string has at least its length
                self.take(count * 8)
            return [self.string() for _ in range(count)]
        layout = _STRUCTS[self._known(kind, key)]  # an array of arrays is refused here
        data = self.take(count * layout.size)
        return [item for (item,) in layout.iter_unpack(data)]

    def _known(self, kind: int, key: str) -> int:
        if kind not in _STRUCTS:
            raise ModelInvalid(
                f"{self._path}: the metadata {key!r} has the unknown type {kind}; download the file again"
            )
        return kind


def read_header(path: Path) -> GGUFHeader:
    """Metadata and tensors of a GGUF file, every count, size and offset checked against the file.

    Raises ModelInvalid for a file that is cut, damaged or lies, UnsupportedFormat for a version or a tensor type that
    cannot be converted. Strings that are not UTF-8 have replacement characters.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Reader(file, path, size), path, size)
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}") from error


def _read(reader: _Reader, path: Path, size: int) -> GGUFHeader:
    if reader.take(4) != MAGIC:
        raise ModelInvalid(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
    version = reader.scalar(4)
    if version not in (2, 3):
        raise UnsupportedFormat(f"{path} has GGUF version {version}; versions 2 and 3 (little-endian) can be read")
    tensor_count, pair_count = reader.scalar(10), reader.scalar(10)
    if tensor_count > _MAX_TENSORS or pair_count > _MAX_PAIRS:
        raise ModelInvalid(f"{path}: {tensor_count} tensors and {pair_count} metadata keys in the GGUF header")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.string()
        metadata[key] = reader.value(key)
    table = [_tensor(reader, path) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment % 8:
        raise ModelInvalid(f"{path}: general.alignment is {alignment!r}")
    data_start = -(-reader.position // alignment) * alignment
    tensors = tuple(_placed(entry, data_start, alignment, path, size) for entry in table)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ModelInvalid(f"{path}: two tensors have the same name")
    return GGUFHeader(metadata, tensors, reader.position)


def _tensor(reader: _Reader, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string()
    dimensions = reader.scalar(4)
    if not 1 <= dimensions <= 4:
        raise ModelInvalid(f"{path}: the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reader.scalar(10) for _ in range(dimensions))
    return name, shape, reader.scalar(4), reader.scalar(10)


def _placed(
    entry: tuple[str, tuple[int, ...], int, int], data_start: int, alignment: int, path: Path, size: int
) -> GGUFTensor:
    name, shape, number, offset = entry
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        supported = ", ".join(known.name for known in TENSOR_TYPES.values())
        raise UnsupportedFormat(
            f"{path}: the tensor {name[:64]!r} has the GGML type {number}; {supported} can be converted: "
            "take another quantisation of this model"
        )
    if min(shape) < 1 or shape[0] % kind.block_elements:
        raise ModelInvalid(f"{path}: the tensor {name[:64]!r} has the shape {list(shape)}, impossible for {kind.name}")
    tensor = GGUFTensor(name, shape, kind, data_start + offset)
    if offset % alignment or tensor.offset + tensor.data_bytes > size:
        raise ModelInvalid(
            f"{path}: the data of the tensor {name[:64]!r} is not inside the file: the file is cut or damaged; "
            "download it again"
        )
    return tensor
