"""GET /v1/models says of each model what is known of it, loaded or not."""

from dataclasses import replace
from typing import cast

import pytest
from flask.testing import FlaskClient
from pictures import model_status, pool_status

from forgellm.api.app import create_app
from forgellm.api.pool import Pool
from forgellm.catalog import CatalogEntry
from forgellm.config import Settings
from forgellm.messages import Task
from forgellm.states import WorkerState
from forgellm.supervisor import PoolStatus
from model_info import INFO

THERE = replace(INFO, context_length=4096, capabilities=("completion", "chat", "tools"))


def known(name: str, task: Task, *aliases: str) -> CatalogEntry:
    return CatalogEntry(
        id=name, name=name, path=None, kind="base", size_bytes=0, source="config", task=task, aliases=aliases
    )


class FakePool:
    """Two models on their way or there, and two more that could be."""

    def status(self) -> PoolStatus:
        there = model_status("there", info=THERE, aliases=("my/best",))
        return pool_status(there, model_status("coming", state=WorkerState.LOADING, context_length=64))

    def catalog(self) -> list[CatalogEntry]:
        return [
            known("there", "generate"),
            known("coming", "generate"),
            known("text", "generate"),
            known("org/vectors", "embed", "v"),
        ]


@pytest.fixture
def client() -> FlaskClient:
    return create_app(cast("Pool", FakePool()), Settings()).test_client()


def test_each_model_is_listed_once_with_its_state_and_what_it_can_do(client):
    listed = client.get("/v1/models").get_json()["data"]
    told = {each["id"]: (each["state"], each["context_length"], each["capabilities"]) for each in listed}
    assert len(listed) == len(told)
    assert told == {
        "there": ("ready", 4096, ["completion", "chat", "tools"]),
        "coming": ("loading", 64, ["completion"]),
        "text": ("stopped", None, ["completion"]),
        "org/vectors": ("stopped", None, ["embedding"]),
    }


@pytest.mark.parametrize(
    ("asked", "name", "aliases"),
    [
        ("there", "there", ["my/best"]),
        ("my/best", "there", ["my/best"]),
        ("v", "org/vectors", ["v"]),
        ("org/vectors", "org/vectors", ["v"]),
    ],
)
def test_a_model_is_found_by_its_name_and_by_an_alias(client, asked, name, aliases):
    found = client.get(f"/v1/models/{asked}").get_json()
    assert (found["id"], found["aliases"]) == (name, aliases)


def test_an_unknown_model_is_not_found(client):
    answer = client.get("/v1/models/my")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "model_not_found")
