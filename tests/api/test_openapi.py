"""The OpenAPI document is valid, and it describes the routes that there are."""

import re
from typing import cast

import msgspec
import pytest
from openapi_spec_validator import validate

from forgellm.api.app import DIALECTS, create_app
from forgellm.api.openapi import document
from forgellm.api.pool import Pool
from forgellm.config import Settings

DOCUMENT = document(DIALECTS)


@pytest.mark.process  # no process, but seconds
def test_the_document_is_valid():
    validate(DOCUMENT)


def test_it_is_served():
    client = create_app(cast("Pool", object()), Settings()).test_client()
    assert client.get("/openapi.json").get_json() == DOCUMENT


FOR_MONITORS = {"/", "/healthz", "/readyz", "/metrics"}  # docs/operations.md


def test_every_route_is_described_and_every_described_route_exists():
    rules = create_app(cast("Pool", object()), Settings()).url_map.iter_rules()
    routed = {re.sub(r"<(?:path:)?(\w+)>", r"{\1}", str(rule)) for rule in rules}
    assert routed - set(DOCUMENT["paths"]) == {"/openapi.json", *FOR_MONITORS}
    assert set(DOCUMENT["paths"]) <= routed


def test_refused_fields_are_not_offered_and_unknown_ones_are_forbidden():
    chat = DOCUMENT["components"]["schemas"]["ChatBody"]
    assert "functions" not in chat["properties"]
    assert chat["additionalProperties"] is False
    assert {"type": "null"} in chat["properties"]["temperature"]["anyOf"]
    assert chat["properties"]["store"]["anyOf"][0]["const"] is False


def test_a_stream_is_described_as_one_event_whose_data_is_a_chunk_or_an_error():
    content = DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    data = content["text/event-stream"]["schema"]["properties"]["data"]["contentSchema"]
    names = [each["$ref"].rpartition("/")[2] for each in data["anyOf"]]
    assert names[0] == "ChatChunk"
    assert "Error" in names[1]


def test_a_stream_is_described_under_each_type_it_may_come_as():
    content = DOCUMENT["paths"]["/api/model/generate"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "application/x-ndjson", "text/plain"}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
def test_every_error_is_described_in_the_envelope_of_its_dialect(dialect):
    described = DOCUMENT["components"]["schemas"]
    names = {field.name for field in msgspec.structs.fields(dialect.error)}
    for operation in dialect.operations:
        responses = DOCUMENT["paths"][operation.path][operation.method]["responses"]
        for status in set(responses) - {"200"}:
            name = responses[status]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert set(described[name]["properties"]) == names
