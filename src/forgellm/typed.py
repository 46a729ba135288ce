"""msgspec's conversion to a type, from any thread. Must not know any type of ours.

msgspec 0.22 learns a type at its first use, and keeps what it knows so far where every thread finds it: another thread
that uses the type in that moment, or one that holds it, reads a null pointer, and the process is gone (segmentation
fault in `convert`; eight first requests at once did it). So types are learnt here, one at a time, before they are used.
"""

import threading
from typing import Any, TypeVar, overload

import msgspec

_T = TypeVar("_T")

_lock = threading.Lock()
_known: set[Any] = set()


@overload
def known(kind: type[_T]) -> type[_T]: ...
@overload
def known(kind: Any) -> Any: ...  # a union, or another form that is no class
def known(kind: Any) -> Any:
    """`kind`, when msgspec knows all of it: the `type` of a msgspec function, or of a Decoder."""
    if kind not in _known:
        with _lock:
            msgspec.json.Decoder(kind)
            _known.add(kind)
    return kind


@overload
def convert(value: Any, kind: type[_T], *, strict: bool = True) -> _T: ...
@overload
def convert(value: Any, kind: Any, *, strict: bool = True) -> Any: ...
def convert(value: Any, kind: Any, *, strict: bool = True) -> Any:
    """msgspec.convert(). Raises msgspec.ValidationError."""
    return msgspec.convert(value, known(kind), strict=strict)


@overload
def decode(raw: bytes | str, kind: type[_T]) -> _T: ...
@overload
def decode(raw: bytes | str, kind: Any) -> Any: ...
def decode(raw: bytes | str, kind: Any) -> Any:
    """msgspec.json.decode() to a type. Raises msgspec.DecodeError, of which ValidationError is one."""
    return msgspec.json.decode(raw, type=known(kind))
