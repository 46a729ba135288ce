"""API keys over the whole app: who gets in, how far, and how soon not any more."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask, Response
from pictures import model_status, pool_status
from werkzeug.test import TestResponse

from forgellm import keys
from forgellm.api import auth
from forgellm.api.app import create_app
from forgellm.api.auth import SCOPES
from forgellm.api.pool import Pool
from forgellm.catalog import CatalogEntry, Job
from forgellm.config import Settings
from forgellm.errors import ConfigError, JobNotFound, ModelNotLoaded
from forgellm.keys import SCOPES as EVERY_SCOPE
from forgellm.messages import Request
from forgellm.supervisor import PoolStatus
from forgellm.supervisor.counts import Counts, Distribution, ModelCounts
from forgellm.supervisor.effects import Evicted
from forgellm.supervisor.watch import Wants, Watch, Watches

MODELS = ("open", "secret")
REACHED = {200, 400, 404}  # what the views say, as opposed to the guard before them

# A body that asks the model for something, by route: the allow-list is tried on each.
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/api/chat": {"messages": [{"role": "user", "content": "x"}]},
    "/api/generate": {"prompt": "x"},
    "/api/embed": {"input": "x"},
    "/api/embeddings": {"prompt": "x"},
    "/api/show": {},
    "/api/model/generate": {"prompt": "x"},
    "/api/model/load": {},
    "/api/model/plan": {},
    "/api/model/unload": {},
    "/api/admin/drain": {},
    "/api/admin/reload": {},
    "/api/models/pull": {},
    "/api/pull": {},
    "/api/delete": {},
}


class FakeDownloads:
    """Knows a job for each model, whose id is the model's name, and keeps what it was asked."""

    def __init__(self, asked: list[Request | str | None]) -> None:
        self.asked = asked

    def pull(self, model: str, revision: str | None = None) -> None:
        self.asked.append(model)
        raise ModelNotLoaded("asked")

    cancel = remove = pull

    def jobs(self) -> list[Job]:
        return [
            Job(id=name, model=name, repository=name, revision="main", state="waiting", created=0.0) for name in MODELS
        ]

    def job(self, job_id: str) -> Job:
        for job in self.jobs():
            if job.id == job_id:
                return job
        raise JobNotFound("there is no such job; GET /api/jobs lists them", field="job_id")


class FakePool:
    """Knows two models, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request | str | None] = []
        self.downloads = FakeDownloads(self.asked)

    def submit(self, request: Request) -> None:
        self.asked.append(request)
        raise ModelNotLoaded("asked")

    def load(self, model: str | None = None, **options: object) -> None:
        self.asked.append(model)
        raise ModelNotLoaded("asked")

    plan = unload = drain = resume = reload = load

    def status(self) -> PoolStatus:
        models = tuple(model_status(name) for name in MODELS)
        return pool_status(*models, current="secret")

    def counts(self, *, timeout_s: float = 5.0) -> Counts:
        none = Distribution((1.0,), (0, 0), 0.0)
        times = {"queue": none, "first_token": none, "between_tokens": none, "request": none, "load": none}
        zeros = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "replays": 0, "quarantined": 0}
        return Counts(tuple(ModelCounts(model=name, **times, **zeros) for name in MODELS))

    def watch(self, wants: Wants | None = None) -> Watch:
        watches = Watches()
        watch = watches.begin(wants)
        watches.take(Evicted(name, "idle", "idle for 5 s") for name in MODELS)
        watches.end()
        return watch

    def catalog(self) -> list[CatalogEntry]:
        return [
            CatalogEntry(id=name, name=name, path=None, kind="base", size_bytes=0, source="config") for name in MODELS
        ]


class Site:
    """An app whose keys are in `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool = FakePool()
        self.app = create_app(cast("Pool", self.pool), Settings(keys_file=str(path)))

    def key(self, **terms: Any) -> str:
        return keys.create(self.path, **terms)[1]

    def call(self, method: str, path: str, key: str | None = None, **more: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.app.test_client().open(path, method=method, headers={**headers, **more.pop("headers", {})}, **more)

    def get(self, path: str, key: str | None = None, **more: Any) -> TestResponse:
        return self.call("GET", path, key, **more)

    def post(self, path: str, key: str | None = None, body: Any = None, **more: Any) -> TestResponse:
        return self.call("POST", path, key, json={} if body is None else body, **more)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "keys.json")


def refused(response: TestResponse) -> tuple[int, str]:
    """The status, and the code wherever the dialect has it."""
    body = response.get_json()
    return response.status_code, body.get("code") or body["error"]["code"]


def rules() -> Iterator[tuple[str, str]]:
    """Every (method, path) of the app; a path's variables are filled with the name of a model."""
    app = create_app(cast("Pool", FakePool()), Settings(keys_file="/nonexistent/keys.json"))
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield method, rule.rule


RULES = sorted(set(rules()))


def filled(rule: str, model: str = "secret") -> str:
    parts = rule.split("/")
    return "/".join(model if part.startswith("<") else part for part in parts)


def test_every_route_has_its_scopes_in_the_table_and_nothing_else_has():
    """A route that is not there is closed to every key: add it to SCOPES in api/auth.py."""
    assert {rule for _, rule in RULES} == set(SCOPES)


@pytest.mark.parametrize(("method", "rule"), RULES)
def test_without_any_key_every_route_is_open(site, method, rule):
    assert site.call(method, filled(rule), json={} if method == "POST" else None).status_code in REACHED


@pytest.mark.parametrize(("method", "rule"), RULES)
def test_once_there_is_a_key_only_health_is_open(site, method, rule):
    site.key(name="somebody")
    response = site.call(method, filled(rule), json={} if method == "POST" else None)
    if rule in {"/", "/healthz", "/api/health"}:
        assert response.status_code == 200
    else:
        assert refused(response) == (401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert site.pool.asked == []


@pytest.mark.parametrize(("method", "rule"), RULES)
@pytest.mark.parametrize("scope", EVERY_SCOPE)
def test_a_key_opens_the_routes_of_its_scopes_and_no_other(site, method, rule, scope):
    key = site.key(scopes=(scope,))
    response = site.call(method, filled(rule), key, json={} if method == "POST" else None)
    if not SCOPES[rule] or scope in SCOPES[rule]:
        assert response.status_code in REACHED
    else:
        assert refused(response) == (403, "forbidden_scope")
        assert site.pool.asked == []


def test_a_route_that_the_table_forgot_is_closed_to_every_key(site, monkeypatch):
    monkeypatch.delitem(auth.SCOPES, "/api/models")
    assert refused(site.get("/api/models", site.key(scopes=EVERY_SCOPE))) == (403, "forbidden_scope")


def test_unknown_paths_and_methods_tell_nothing_without_a_key(site):
    key = site.key(scopes=("metrics",))
    assert [site.get(path).status_code for path in ("/nothing", "/api/model/load")] == [401, 401]
    assert [site.get(path, key).status_code for path in ("/nothing", "/api/model/load")] == [404, 405]


def test_a_key_comes_as_bearer_or_as_x_api_key(site):
    key = site.key()
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key} "},
        {"X-Api-Key": key},
        {"X-Api-Key": key, "Authorization": f"Bearer {key}"},
    ):
        assert site.get("/api/models", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{"Authorization": "Basic {}"}, {"Authorization": "{}"}, {"Cookie": "key={}"}])
def test_a_key_comes_in_no_other_way(site, headers):
    """A cookie would be sent by any page."""
    key = site.key()
    sent = {name: value.format(key) for name, value in headers.items()}
    assert refused(site.get("/api/models", headers=sent)) == (401, "unauthorized")


@pytest.mark.parametrize("wrong", ["fk-" + "A" * 43, "x", "\xff", "k" * 8000])
def test_an_unknown_key_is_refused_and_not_repeated(site, wrong):
    site.key()
    response = site.get("/api/models", headers={"X-Api-Key": wrong})
    assert refused(response) == (401, "unauthorized")
    assert wrong == "x" or wrong not in response.text


def test_two_different_keys_are_not_one(site):
    headers = {"X-Api-Key": site.key(), "Authorization": f"Bearer {site.key()}"}
    assert refused(site.get("/api/models", headers=headers)) == (401, "unauthorized")


@pytest.mark.parametrize(
    "url",
    [
        "/api/models?api_key={}",
        "/api/models?API-KEY={}",
        "/api/models?x={}",
        "/api/models?{}=1",
        "/api/models?model=%66%6b%2d{tail}",
        "/api/models/{}",
        "/{}/api/models",
        "/healthz?token={}",
        "/api/models?key=anything",
    ],
)
@pytest.mark.parametrize("has_keys", [True, False])
def test_a_key_in_the_url_is_refused_and_not_repeated(site, url, has_keys, caplog):
    key = site.key() if has_keys else "fk-" + "Zz9_-" * 8 + "abc"
    assert keys.SHAPE.fullmatch(key)
    response = site.get(url.format(key, tail=key[3:]), key)
    assert refused(response) == (400, "key_in_url")
    assert key[3:] not in response.text + str(response.headers) + caplog.text


def test_a_preflight_needs_no_key_and_tells_nothing(site):
    """Browsers send none with it; without this answer a page could never send one."""
    site.key()
    asks = {"Access-Control-Request-Method": "POST", "Origin": "http://localhost:5002"}
    assert site.call("OPTIONS", "/api/models", headers=asks).data == b""
    assert refused(site.call("OPTIONS", "/api/models")) == (401, "unauthorized")


# The file, while the app runs


def test_the_first_key_closes_a_running_app_and_a_revoked_one_opens_nothing(site):
    assert site.get("/api/models").status_code == 200
    key = site.key(name="laptop")
    other = site.key()
    assert site.get("/api/models").status_code == 401
    assert site.get("/api/models", key).status_code == 200
    keys.revoke(site.path, "laptop")
    assert site.get("/api/models", key).status_code == 401
    assert site.get("/api/models", other).status_code == 200


def test_revoking_the_last_key_lets_nobody_in(site):
    key = site.key(name="only")
    keys.revoke(site.path, "only")
    assert [site.get("/api/models", sent).status_code for sent in (None, key)] == [401, 401]


def test_a_keys_file_that_disappears_lets_nobody_in(site, caplog):
    key = site.key()
    assert site.get("/api/models", key).status_code == 200
    site.path.unlink()
    assert [site.get("/api/models", sent).status_code for sent in (None, key)] == [401, 401]
    assert "is gone" in caplog.text


def test_a_keys_file_that_breaks_lets_nobody_in_until_it_is_mended(site, caplog):
    key = site.key()
    whole = site.path.read_bytes()
    site.path.write_bytes(whole[:-10])
    for _ in range(3):
        assert refused(site.get("/api/models", key)) == (503, "unavailable")
    assert caplog.text.count("is no keys file") == 1
    assert site.get("/healthz").status_code == 503
    site.path.unlink()
    assert site.get("/api/models").status_code == 401
    site.path.write_bytes(whole)
    site.path.chmod(0o600)
    assert site.get("/api/models", key).status_code == 200


def test_a_broken_keys_file_that_appears_does_not_leave_the_app_open(site):
    site.path.write_bytes(b"{")
    assert site.get("/api/models").status_code == 503
    site.path.unlink()
    assert site.get("/api/models").status_code == 401


def test_an_app_does_not_begin_with_a_broken_keys_file(site):
    site.path.write_bytes(b"{")
    with pytest.raises(ConfigError, match="is no keys file"):
        Site(site.path)


# Models


def still(text: str) -> str:
    """What does not change from call to call: without the processor time of this process, among the metrics, and
    without times of day, which are worked out anew for each answer."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("process_"))
    return re.sub(r'"(time|since)":[^,}]+', r'"\1":0', text)


@pytest.mark.parametrize(("method", "rule"), RULES)
def test_the_list_of_models_counts_on_every_route_that_names_one(site, method, rule):
    """A route of a new dialect must be in ASKS here, or show no model that the key may not use."""
    key = site.key(scopes=EVERY_SCOPE, models=["open"])
    if method == "GET":
        assert "secret" not in site.get(filled(rule, "open"), key).text
        named, absent = (site.get(f"{filled(rule, name)}?model={name}", key) for name in ("secret", "nothing"))
        assert named.status_code in REACHED
        assert still(named.text).replace("secret", "nothing") == still(absent.text)
        return
    if method == "DELETE" and rule not in ASKS:  # the path names it
        assert site.call(method, filled(rule), key).status_code in {403, 404}
        assert site.pool.asked == []
        assert refused(site.call(method, filled(rule, "open"), key))[1] == "model_not_loaded"
        assert site.pool.asked == ["open"]
        return
    body = ASKS[rule]
    if rule == "/api/show":  # it reads, as a GET does
        named, absent = (site.post(rule, key, {"model": name}) for name in ("secret", "nothing"))
        assert (named.status_code, named.text.replace("secret", "nothing")) == (404, absent.text)
        return
    if rule == "/api/admin/reload":  # it concerns every model
        assert refused(site.post(rule, key, body))[0] == 403
        return
    assert refused(site.call(method, rule, key, json={**body, "model": "secret"}))[0] == 403
    assert refused(site.call(method, rule, key, json=body))[0] in {400, 403}  # the current model is the secret one
    assert site.pool.asked == []
    assert refused(site.call(method, rule, key, json={**body, "model": "open"}))[1] == "model_not_loaded"
    assert len(site.pool.asked) == 1


def test_a_model_that_the_key_may_not_use_is_refused_whether_there_is_one_or_not(site):
    key = site.key(models=["open"])
    answers = [site.post("/api/model/generate", key, {"prompt": "x", "model": m}) for m in ("secret", "nothing")]
    assert [refused(answer) for answer in answers] == [(403, "forbidden_model")] * 2
    assert answers[0].text.replace("secret", "nothing") == answers[1].text


def test_lists_and_status_show_what_the_key_may_use(site):
    key = site.key(models=["open"])
    assert [model["id"] for model in site.get("/api/models", key).get_json()["models"]] == ["open"]
    status = site.get("/api/model/status", key).get_json()
    assert [model["model_name"] for model in status["models"]] == ["open"]
    assert status["model_name"] is None


def test_a_request_says_which_key_asked(site):
    site.post("/api/model/generate", body={"prompt": "x"})
    key, secret = keys.create(site.path)
    site.post("/api/model/generate", secret, {"prompt": "x"})
    assert [request.client for request in site.pool.asked if isinstance(request, Request)] == ["", key.id]


@pytest.mark.parametrize("policy", [None, "preloaded", "on_demand"])
@pytest.mark.parametrize("rule", sorted(rule for rule in ASKS if SCOPES[rule] == {"infer"}))
def test_a_request_of_every_dialect_says_what_its_key_may_have_loaded(site, rule, policy):
    site.post(rule, site.key(load_policy=policy), {**ASKS[rule], "model": "open"})
    assert [request.load_policy for request in site.pool.asked] == [policy]


@pytest.mark.parametrize("seconds", [0, -1, 5])
@pytest.mark.parametrize("rule", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/model/generate"])
def test_a_key_for_what_is_loaded_does_not_say_how_long_it_stays(site, rule, seconds):
    """Not with a prompt, and not without one, which in Ollama's dialect loads and unloads."""
    name = "keep_alive_s" if rule == "/api/model/generate" else "keep_alive"
    key, other = site.key(load_policy="preloaded"), site.key()
    for asked in (ASKS[rule], *([{}] if rule in {"/api/chat", "/api/generate"} else [])):
        body = {**asked, "model": "open", name: seconds}
        assert refused(site.post(rule, key, body)) == (403, "forbidden_scope")
        assert site.pool.asked == []
        site.post(rule, other, body)
        assert site.pool.asked.pop().keep_alive_s == seconds


@pytest.mark.parametrize("rule", [rule for method, rule in RULES if method == "POST"])
def test_a_body_that_a_page_could_send_without_asking_is_refused(site, rule):
    """A form or text/plain needs no preflight."""
    body = json.dumps({**ASKS[rule], "model": "open"})
    ollama = {"/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/api/pull"}
    if rule in ollama:  # its clients leave the type out; a page that does is told by its Origin
        sent = site.call("POST", rule, data=body, headers={"Origin": "https://else.where"})
        assert refused(sent) == (403, "forbidden_origin")
    for kind in ("text/plain", "application/x-www-form-urlencoded", *(() if rule in ollama else (None,))):
        response = site.call("POST", filled(rule), data=body, content_type=kind)
        assert refused(response) == (400, "invalid_request")
    assert site.pool.asked == []


# Limits


def test_a_rate_counts_what_is_sent_to_do_something_and_says_when_to_come_back(site):
    key, other = site.key(name="laptop", rate_per_min=2), site.key()
    for _ in range(5):
        assert site.get("/api/model/status", key).status_code == 200
    for _ in range(2):
        assert refused(site.post("/api/model/generate", key, {"prompt": "x"}))[0] == 400
    response = site.post("/api/model/generate", key, {"prompt": "x"})
    assert refused(response) == (429, "rate_limited")
    assert 1 <= int(response.headers["Retry-After"]) <= 30
    assert refused(site.post("/api/model/generate", other, {"prompt": "x"}))[0] == 400


def streaming(site: Site, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """The app with a route that streams, and one whose every answer fails to become one."""

    def stream() -> Response:
        return Response(iter(["a", "b"]))

    def fail() -> Response:
        raise RuntimeError("no answer")

    site.app.add_url_rule("/stream", view_func=stream, methods=["POST"])
    site.app.add_url_rule("/fail", view_func=fail, methods=["POST"])
    for rule in ("/stream", "/fail"):
        monkeypatch.setitem(auth.SCOPES, rule, frozenset({"infer"}))
    return site.app


def test_a_place_is_taken_until_the_answer_is_out(site, monkeypatch):
    streaming(site, monkeypatch)
    key = site.key(concurrency=1)
    running = site.post("/stream", key)
    response = site.post("/stream", key)
    assert refused(response) == (429, "too_many_at_once")
    assert response.headers["Retry-After"]
    assert site.post("/stream", site.key()).status_code == 200
    assert site.get("/api/models", key).status_code == 200
    running.close()
    for _ in range(3):
        site.post("/stream", key).close()
    after = site.post("/stream", key)
    assert after.status_code == 200


@pytest.mark.parametrize("path", ["/fail", "/nothing", "/api/model/generate"])
def test_an_answer_that_fails_gives_its_place_back(site, monkeypatch, path):
    streaming(site, monkeypatch)
    key = site.key(concurrency=1)
    statuses = set()
    for _ in range(3):
        with site.post(path, key) as response:
            statuses.add(response.status_code)
    assert statuses.isdisjoint({200, 429})


def test_an_answer_that_is_replaced_at_the_last_moment_gives_its_place_back(site, monkeypatch):
    streaming(site, monkeypatch)
    key = site.key(concurrency=1)
    fails = iter([True, False, False])

    def breaks(response: Response) -> Response:
        if next(fails):
            raise RuntimeError("too late")
        return response

    site.app.after_request_funcs[None].insert(0, breaks)  # the first one runs last
    with site.post("/stream", key) as response:
        assert response.status_code == 500
    assert site.post("/stream", key).status_code == 200


def test_an_app_whose_answers_never_come_gives_places_back_too(site, monkeypatch):
    """No response means nobody to close it."""
    app = streaming(site, monkeypatch)
    key = site.key(concurrency=1)
    with monkeypatch.context() as patch:
        patch.setitem(app.after_request_funcs, None, [])
        site.post("/stream", key).close()
    assert site.post("/stream", key).status_code == 200
