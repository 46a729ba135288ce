"""Web pages: which may call, and which names the server answers to."""

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from forgellm.api import errors, security
from forgellm.config import Settings

PAGE = "http://localhost:5002"


def call(
    method: str,
    cors_origins: list[str] | None = None,
    host: str = "127.0.0.1",
    names: tuple[str, ...] = (),
    **headers: str,
) -> TestResponse:
    """One request to an app that listens on `host`, and may be called by `names` too."""
    app = Flask(__name__)
    security.register(app, Settings(host=host, cors_origins=cors_origins or [], allowed_hosts=list(names)))
    errors.register(app)
    app.add_url_rule("/", view_func=lambda: "secret", methods=["GET", "POST"])
    return app.test_client().open("/", method=method, headers=headers)


@pytest.mark.parametrize("host", ["localhost", "localhost:5001", "127.0.0.1:5001", "[::1]:5001", "LOCALHOST:1"])
def test_loopback_names_are_answered(host):
    assert call("GET", Host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5001", "localhost.evil.example", "[::2]:5001", "[", "@"]
)
def test_chaos_091_a_name_that_was_rebound_to_this_machine_is_not(host):
    """A page on evil.example can point that name at 127.0.0.1, and would then be same-origin with this server."""
    response = call("GET", Host=host)
    assert (response.status_code, response.get_json()["code"]) == (403, "forbidden_host")
    assert "secret" not in response.text


@pytest.mark.parametrize("host", ["192.168.1.5:5001", "[fe80::1]:5001", "localhost", "box.lan:5001", "models.example"])
def test_a_server_on_every_address_answers_to_addresses_and_to_the_names_it_was_given(host):
    assert call("GET", host="0.0.0.0", names=("box.lan", "Models.Example"), Host=host).status_code == 200  # noqa: S104


@pytest.mark.parametrize("host", ["evil.example", "192.168.1.5.evil.example", "sub.box.lan", "["])
def test_it_answers_to_no_other_name(host):
    response = call("GET", host="0.0.0.0", names=("box.lan",), Host=host)  # noqa: S104
    assert (response.status_code, response.get_json()["code"]) == (403, "forbidden_host")
    assert "allowed_hosts" in response.get_json()["error"]


def test_a_proxy_on_this_machine_may_keep_its_name():
    assert call("GET", names=("models.example",), Host="models.example").status_code == 200
    assert call("GET", names=("*",), Host="anything.example").status_code == 200


def test_chaos_091_no_other_origin_may_post_by_default():
    response = call("POST", Host="localhost:5001", Origin=PAGE)
    assert (response.status_code, response.get_json()["code"]) == (403, "forbidden_origin")
    assert "cors_origins" in response.get_json()["error"]


@pytest.mark.parametrize("origin", ["null", "http://localhost:5001.evil.example"])
def test_an_opaque_or_lookalike_origin_may_not_post(origin):
    assert call("POST", Host="localhost:5001", Origin=origin).status_code == 403


def test_the_servers_own_pages_may_post():
    assert call("POST", Host="localhost:5001", Origin="http://localhost:5001").status_code == 200


def test_nobody_reads_across_origins_by_default():
    response = call("GET", Host="localhost", Origin=PAGE)
    assert "Access-Control-Allow-Origin" not in response.headers


def test_a_configured_origin_may_post_and_read():
    response = call("POST", [PAGE], Host="localhost:5001", Origin=PAGE)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == PAGE
    assert response.headers["Vary"] == "Origin"


def test_a_preflight_of_a_configured_origin_is_answered():
    response = call("OPTIONS", [PAGE], Host="localhost:5001", Origin=PAGE)
    assert response.headers["Access-Control-Allow-Methods"] == "GET, POST, DELETE, OPTIONS"
    assert "Content-Type" in response.headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("x-api-key, anthropic-version", "x-api-key, anthropic-version"),
        ("x\xff", "Content-Type, Accept, Authorization, X-Api-Key"),
    ],
)
def test_a_preflight_gets_leave_for_the_headers_that_client_libraries_add(asked, allowed):
    headers = {"Access-Control-Request-Headers": asked}
    response = call("OPTIONS", [PAGE], Host="localhost", Origin=PAGE, **headers)
    assert response.headers["Access-Control-Allow-Headers"] == allowed


def test_a_preflight_of_another_origin_gets_no_leave():
    response = call("OPTIONS", [PAGE], Host="localhost:5001", Origin="http://evil.example")
    assert "Access-Control-Allow-Origin" not in response.headers


def test_errors_can_be_read_across_origins_too():
    """Otherwise the page sees a network error where the server said why."""
    response = call("DELETE", [PAGE], Host="localhost:5001", Origin=PAGE)
    assert response.status_code == 405
    assert response.headers["Access-Control-Allow-Origin"] == PAGE


def test_a_star_is_any_origin():
    assert call("POST", ["*"], Host="localhost", Origin="http://x").headers["Access-Control-Allow-Origin"] == "*"


def test_nothing_is_sniffed():
    assert call("GET").headers["X-Content-Type-Options"] == "nosniff"
