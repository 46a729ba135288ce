"""Examples of every field of ForgeLLM's own routes, for test_params.py."""

from typing import Any

from examples_openai import Check, given

from forgellm.api.schemas import GenerateBody, LoadBody, PlanBody, UnloadBody
from forgellm.api.schemas.jobs import PullBody
from forgellm.api.schemas.operations import DrainBody, ReloadBody
from forgellm.messages import Request


def _request(body: GenerateBody) -> Request:
    return body.to_request("m", "kept")


def _asked(name: str, value: Any) -> Check:
    return lambda body: getattr(_request(body), name) == value


def _sampled(name: str, value: Any) -> Check:
    return lambda body: getattr(_request(body).sampling, name) == value


def _limited(name: str) -> Check:
    return lambda body: getattr(_request(body).timeouts, name) == 2.5


def _option(name: str, value: Any) -> Check:
    """The pool is asked to load it so."""
    return lambda body: body.options()[name] == value


def _turns(*turns: tuple[str, str]) -> Check:
    return _asked("messages", tuple({"role": role, "content": content} for role, content in turns))


LOADED: dict[str, tuple[Any, Check]] = {
    "model_name": ("other", given("model_name", "other")),
    "adapter_path": ("/a", _option("adapter_path", "/a")),
    "system_prompt": ("be", _option("system_prompt", "be")),
    "ttl_s": (5.5, _option("ttl_s", 5.5)),
    "pin": (True, _option("pin", True)),
    "replicas": (2, _option("replicas", 2)),
    "max_kv_size": (64, _option("max_kv_size", 64)),
    "context_length": (64, _option("context_length", 64)),
}

BASE: dict[Any, dict[str, Any]] = {
    LoadBody: {"model_name": "m"},
    PlanBody: {"model_name": "m"},
    UnloadBody: {},
    GenerateBody: {"prompt": "hi"},
    PullBody: {"model": "org/name"},
    DrainBody: {},
    ReloadBody: {},
}

HONOURED: dict[Any, dict[str, tuple[Any, Check]]] = {
    LoadBody: {**LOADED, "wait": (True, given("wait", True))},
    PlanBody: LOADED,
    UnloadBody: {"model_name": ("m", given("model_name", "m")), "force": (True, given("force", True))},
    GenerateBody: {
        "prompt": ("yo", _turns(("system", "kept"), ("user", "yo"))),
        "model": ("other", given("model", "other")),
        "history": (
            [{"role": "assistant", "content": "a"}],
            _turns(("system", "kept"), ("assistant", "a"), ("user", "hi")),
        ),
        "system_prompt": ("be", _turns(("system", "be"), ("user", "hi"))),
        "max_tokens": (5, _sampled("max_tokens", 5)),
        "temperature": (0.5, _sampled("temperature", 0.5)),
        "top_p": (0.5, _sampled("top_p", 0.5)),
        "top_k": (3, _sampled("top_k", 3)),
        "min_p": (0.25, _sampled("min_p", 0.25)),
        "repetition_penalty": (1.5, _sampled("repetition_penalty", 1.5)),
        "stop": ("END", _sampled("stop", ("END",))),
        "max_kv_size": (64, _asked("max_kv_size", 64)),
        "seed": (9, _sampled("seed", 9)),
        "is_base_model": (True, _asked("template", False)),
        "streaming": (True, given("streaming", True)),
        "timeout_s": (2.5, _limited("total_s")),
        "queue_timeout_s": (2.5, _limited("queue_s")),
        "first_token_timeout_s": (2.5, _limited("first_token_s")),
        "token_timeout_s": (2.5, _limited("token_s")),
        "keep_alive_s": (-1, _asked("keep_alive_s", -1.0)),
    },
    DrainBody: {
        "model": ("m", given("model", "m")),
        "timeout_s": (2.5, given("timeout_s", 2.5)),
        "resume": (True, given("resume", True)),
    },
    PullBody: {
        "model": ("org/name", given("model", "org/name")),
        "revision": ("v1", given("revision", "v1")),
    },
    ReloadBody: {"dry_run": (True, given("dry_run", True))},
}

NEEDS: dict[tuple[Any, str], dict[str, Any]] = {}

NO_EFFECT: dict[Any, dict[str, Any]] = {}
