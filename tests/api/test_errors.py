"""Every error has a status, and every answer has the same shape."""

import pytest
from flask import Flask

from forgellm import errors
from forgellm.api.errors import STATUS_BY_CODE, register


def app_that_raises(error: Exception) -> Flask:
    app = Flask(__name__)
    register(app)

    @app.get("/fail")
    def fail() -> str:
        raise error

    return app


def test_every_error_code_has_a_status():
    """A new error class without a line in the table would be a 500."""
    assert set(errors.BY_CODE) <= set(STATUS_BY_CODE)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest("x"), 400),
        (errors.ModelNotLoaded("x"), 400),
        (errors.ModelNotFound("x"), 404),
        (errors.PayloadTooLarge("x"), 413),
        (errors.UntrustedCode("x"), 422),
        (errors.QueueFull("x"), 429),
        (errors.InsufficientMemory("x"), 503),
    ],
)
def test_an_error_is_json_with_its_code_and_sentence(error, status):
    response = app_that_raises(error).test_client().get("/fail")
    assert response.status_code == status
    assert response.get_json() == {"success": False, "error": "x", "code": error.code}


def test_an_error_about_a_field_names_it():
    response = app_that_raises(errors.InvalidRequest("x", field="top_p")).test_client().get("/fail")
    assert response.get_json()["field"] == "top_p"


@pytest.mark.parametrize(("given", "header"), [(None, "1"), (0.2, "1"), (4.1, "5")])
def test_try_again_errors_say_when(given, header):
    for error in (errors.QueueFull("x", retry_after_s=given), errors.ModelLoading("x", retry_after_s=given)):
        assert app_that_raises(error).test_client().get("/fail").headers["Retry-After"] == header


def test_an_unforeseen_error_tells_the_log_and_not_the_client(caplog):
    response = app_that_raises(RuntimeError("secret path /root")).test_client().get("/fail")
    assert response.status_code == 500
    assert response.get_json()["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret path" in caplog.text


def test_unknown_paths_and_methods_are_json_too():
    client = app_that_raises(errors.NotFound("x")).test_client()
    missing, wrong = client.get("/nothing"), client.post("/fail")
    assert (missing.status_code, missing.get_json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.get_json()["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong.headers["Allow"]
