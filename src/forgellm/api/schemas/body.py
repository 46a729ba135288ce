"""The base of every request body: bytes to checked values, or an error that names the field. Calls nothing.

Bounds refuse what no model can honour; what only a loaded model knows (its context length) is checked in its worker.
Each field says what becomes of it, in its annotation: `honoured`, `no_effect`, `only` one value, or `refused`. These
annotations are the one table of parameters: docs/parameters.md, /openapi.json and a test per field are made from it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

from forgellm import typed
from forgellm.errors import InvalidRequest, Unsupported, from_wire

Name = Annotated[str, Meta(min_length=1, max_length=1024)]

Verdict = Literal["honoured", "no effect", "only", "refused"]


@dataclass(frozen=True, slots=True)
class Param:
    """What becomes of one field. `value` is the only accepted one, where the verdict is "only"."""

    name: str
    verdict: Verdict
    says: str
    value: Any = None


def honoured(says: str) -> Meta:
    """The field does what `says` says."""
    return Meta(description=says)


def no_effect(why: str) -> Meta:
    """The field is accepted and changes nothing in the answer, for the reason `why`."""
    return Meta(description=why, extra={"verdict": "no effect"})


def only(value: Any, why: str) -> Meta:
    """`value` is accepted, for it is what happens anyway; any other is refused with `why`."""
    schema = {"const": value}
    return Meta(description=why, extra={"verdict": "only", "value": value}, extra_json_schema=schema)


def refused(why: str) -> Meta:
    """The field is known, and refused with `why` unless it is null."""
    return Meta(description=why, extra={"verdict": "refused"})


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object. `null` means the default; a field that is not listed is refused."""

    ALIASES: ClassVar[Mapping[str, str]] = {}
    NEEDS_TYPE: ClassVar[bool] = True
    """Whether the Content-Type may not be missing. A page can leave it out, but not the Origin, which is checked."""
    PARTS: ClassVar[Mapping[str, "type[Body]"]] = {}
    """Fields that are bodies themselves, whose fields are worth a row each."""

    @classmethod
    def decode(cls, raw: bytes, content_type: str | None, content_encoding: str | None = None) -> Self:
        """The checked body. Raises InvalidRequest naming the field, or the byte where the JSON breaks."""
        if content_encoding not in {None, "", "identity"}:
            raise InvalidRequest(f"Content-Encoding {content_encoding} is not accepted; send the body uncompressed")
        media_type = (content_type or "").partition(";")[0].strip().lower()
        if media_type != "application/json" and (media_type or cls.NEEDS_TYPE):
            given = f"not {media_type}" if media_type else "which is missing"
            raise InvalidRequest(f"the Content-Type must be application/json, {given}")
        return _convert(cls, cls._named(_parse(raw)))

    @classmethod
    def of(cls, values: dict[str, Any], place: str) -> Self:
        """The checked value of the field `place` of another body. Raises InvalidRequest naming the field in it."""
        try:
            return _convert(cls, cls._named(values))
        except InvalidRequest as error:
            name = f"{place}.{error.field}"
            message = error.message.replace(f"`{error.field}`", f"`{name}`", 1)
            raise from_wire(error.code, message, name) from error

    @classmethod
    def _named(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`values` by their proper names, without nulls."""
        params = params_of(cls)
        found: dict[str, Any] = {}
        for given, value in values.items():
            name = cls.ALIASES.get(given, given)
            if name == "trust_remote_code":
                raise InvalidRequest("code from a model folder is never run; a request cannot change that", field=name)
            param = params.get(name)
            if param is None:
                known = (*(each.name for each in params.values() if each.verdict != "refused"), *cls.ALIASES)
                accepted = ", ".join(sorted(known))
                raise InvalidRequest(f"unknown field `{given}`; accepted: {accepted}", field=given)
            if value is None:
                continue
            if param.verdict == "refused":
                raise Unsupported(f"`{given}` is not accepted: {param.says}", field=given)
            if param.verdict == "only" and (
                value != param.value or isinstance(value, bool) != isinstance(param.value, bool)
            ):
                wanted = msgspec.json.encode(param.value).decode()
                raise Unsupported(f"`{given}` can only be {wanted}: {param.says}", field=given)
            if name in found and found[name] != value:
                raise InvalidRequest(f"`{given}` and another name of the same field differ; give one", field=given)
            found[name] = value
        return found


def invalid(field: str, says: str) -> InvalidRequest:
    """An error about `field`, which is a path such as "messages[0].content"; `says` goes on after its name."""
    return InvalidRequest(f"`{field}` {says}", field=field)


@cache
def params_of(cls: type[Body]) -> Mapping[str, Param]:
    """What becomes of each field of a body, by its name; a field that says nothing is honoured."""
    return {
        name: _param(name, hint)
        for name, hint in get_type_hints(cls, include_extras=True).items()
        if name in cls.__struct_fields__
    }


def _param(name: str, hint: Any) -> Param:
    meta = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta) and m.description), None)
    if meta is None:
        return Param(name, "honoured", "")
    extra = meta.extra or {}
    return Param(name, extra.get("verdict", "honoured"), meta.description or "", extra.get("value"))


_B = TypeVar("_B", bound=Body)

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")


def _parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; msgspec is strict about numbers, nesting and surrogates, and says where it broke."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise InvalidRequest("the body starts with a byte order mark (byte 0); send plain UTF-8")
    try:
        value = msgspec.json.decode(raw.decode("utf-8"))
        json.loads(raw, object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        place = "" if "(byte" in str(error) or "`$" in str(error) else f" (byte {len(raw)})"
        raise InvalidRequest(f"the body is not valid JSON: {error}{place}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"the body has `{twice}` twice", field=twice)
    return values


def _convert(cls: type[_B], values: dict[str, Any]) -> _B:
    try:
        return typed.convert(values, cls)
    except msgspec.ValidationError as error:
        match = _WHERE.match(str(error))
        what, path = (match["what"], match["path"] or "") if match else (str(error), "")
        missing = _MISSING.search(what)
        if missing:
            field = f"{path}.{missing['name']}" if path else missing["name"]
            raise InvalidRequest(f"`{field}` is required", field=field) from error
        raise InvalidRequest(f"`{path}`: {what[:1].lower()}{what[1:]}", field=path) from error
