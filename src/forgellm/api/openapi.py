"""GET /openapi.json: the routes of all dialects in OpenAPI 3.1, from the structs that decode and encode them.

Must not describe anything by hand that a struct or an Operation says.
"""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from flask import Blueprint, Flask, Response

from forgellm.api import sse
from forgellm.api.dialect import Dialect, Operation
from forgellm.api.schemas import Body, params_of

REF = "#/components/schemas/{name}"
ANY_ROUTE = (400, 401, 403, 404, 429, 500, 503)  # an unknown host, a missing key, too many requests, a server that ends
WITH_BODY = (413, 422, 504)  # too large, a model that cannot be served, no answer in time


def register(app: Flask, dialects: Sequence[Dialect]) -> None:
    """Serve the document of `dialects`."""
    blueprint = Blueprint("openapi", __name__)
    made: list[bytes] = []

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        """This document."""
        if not made:  # at the first call: it takes milliseconds that no start should pay
            made.append(msgspec.json.encode(document(dialects)))
        return Response(made[0], mimetype="application/json")

    app.register_blueprint(blueprint)


def document(dialects: Sequence[Dialect]) -> dict[str, Any]:
    """The OpenAPI document, as JSON values."""
    types = list(dict.fromkeys(each for dialect in dialects for each in _types(dialect)))
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    refs = dict(zip(types, schemas, strict=True))
    for each in types:
        if issubclass(each, Body):
            _as_decoded(each, components[_name(refs[each])])
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for operation in dialect.operations:
            paths.setdefault(operation.path, {})[operation.method] = _operation(dialect, operation, refs)
    made = {
        "openapi": "3.1.0",
        "info": {"title": "ForgeLLM", "version": importlib.metadata.version("forgellm")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],  # {}: none, while there are no keys
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made))  # defaults are structs and tuples so far
    return plain


def _types(dialect: Dialect) -> list[type[msgspec.Struct]]:
    found: list[type[msgspec.Struct] | None] = [dialect.error]
    for operation in dialect.operations:
        found += (operation.body, operation.answer, operation.event)
    return [each for each in found if each is not None]


def _name(ref: Mapping[str, Any]) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _as_decoded(body: type[Body], schema: dict[str, Any]) -> None:
    """Make `schema` say what Body.decode does: no other fields, null for the default, aliases, no refused ones."""
    properties: dict[str, Any] = schema["properties"]
    params = params_of(body)
    required = set(schema.get("required", ()))
    for name in list(properties):
        if params[name].verdict == "refused":
            del properties[name]
        elif name not in required:
            properties[name] = _or_null(properties[name])
    for alias, name in body.ALIASES.items():
        properties[alias] = properties[name] | {"description": f"another name of `{name}`"}
    schema["additionalProperties"] = False


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    outside = {key: schema[key] for key in ("description", "default") if key in schema}
    inside = {key: value for key, value in schema.items() if key not in outside}
    options = inside["anyOf"] if set(inside) == {"anyOf"} else [inside]
    return outside | {"anyOf": [*(each for each in options if each != {"type": "null"}), {"type": "null"}]}


def _streamed(media_type: str, line: dict[str, Any]) -> dict[str, Any]:
    """One line of a stream, or one server-sent event around it. No contentMediaType: the last data may be "[DONE]"."""
    if media_type != sse.MIMETYPE:
        return line
    data = {"type": "string", "contentSchema": line}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _operation(dialect: Dialect, operation: Operation, refs: Mapping[type, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "application/json": {"schema": refs.get(operation.answer or type(None), {"type": "object"})}
    }
    if operation.event is not None:
        line = {"anyOf": [refs[operation.event], refs[dialect.error]]}  # an error after the first byte is a line, too
        content |= {name: {"schema": _streamed(name, line)} for name in operation.stream_types}
    responses = {"200": {"description": "The answer.", "content": content}}
    statuses = {*ANY_ROUTE, *operation.statuses, *(WITH_BODY if operation.body else ())}
    for status in sorted(statuses):
        responses[str(status)] = {
            "description": "An error.",
            "content": {"application/json": {"schema": refs[dialect.error]}},
        }
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{operation.method}{operation.path}").strip("_"),
        "summary": operation.says,
        "tags": [dialect.name],
        "responses": responses,
    }
    places = re.findall(r"{(\w+)}", operation.path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in places
    ]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in operation.query]
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        content = {"application/json": {"schema": refs[operation.body]}}
        found["requestBody"] = {"required": not operation.is_body_optional, "content": content}
    return found
