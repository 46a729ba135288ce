"""The words for a request that there is no place for, and who hears them."""

from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient

from forgellm import keys
from forgellm.api import access, auth, errors, overload, security
from forgellm.api.gate import Gate
from forgellm.api.overload import HAS_NO_PLACE, wants_place
from forgellm.config import Settings

CHAT = "/v1/chat/completions"
NO_PLACE = {HAS_NO_PLACE: True}


def client(settings: Settings) -> FlaskClient:
    app = Flask(__name__)
    app.add_url_rule(CHAT, view_func=lambda: "answered", methods=["POST"])
    access.register(app)
    security.register(app, settings)
    auth.register(app, settings)
    overload.register(app, Gate(3))
    errors.register(app)
    return app.test_client()


def test_without_a_place_a_request_is_refused_before_its_view_runs(tmp_path: Path):
    http = client(Settings(keys_file=str(tmp_path / "keys.json")))
    assert http.post(CHAT).text == "answered"
    refused = http.post(CHAT, environ_overrides=NO_PLACE, headers={"X-Request-Id": "mine"})
    assert (refused.status_code, refused.json["code"]) == (503, "unavailable")
    assert "3 requests are being served" in refused.json["error"]
    assert (refused.headers["Retry-After"], refused.headers["X-Request-Id"]) == ("1", "mine")


def test_a_page_that_may_call_can_read_its_refusal(tmp_path: Path):
    http = client(Settings(keys_file=str(tmp_path / "keys.json"), cors_origins=("https://a.example",)))
    refused = http.post(CHAT, environ_overrides=NO_PLACE, headers={"Origin": "https://a.example"})
    assert refused.status_code == 503
    assert refused.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert http.post(CHAT, environ_overrides=NO_PLACE, headers={"Origin": "https://b.example"}).status_code == 403


def test_who_may_not_call_at_all_is_not_told_how_busy_the_server_is(tmp_path: Path):
    settings = Settings(keys_file=str(tmp_path / "keys.json"))
    keys.create(settings.keys_path, name="laptop")
    assert client(settings).post(CHAT, environ_overrides=NO_PLACE).status_code == 401


def test_only_answers_of_models_want_a_place():
    assert wants_place("POST", CHAT)
    assert wants_place("POST", "/api/model/generate")
    assert not wants_place("OPTIONS", CHAT)
    assert not wants_place("GET", "/healthz")
    assert not wants_place("POST", "/api/model/unload")
