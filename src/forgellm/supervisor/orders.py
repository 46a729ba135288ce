"""Turns a load call into a LoadOrder: the name resolved, the config entry and the settings filled in.

Reads files and how much memory is free; must not load, spawn or decide.
"""

import sys
from collections.abc import Mapping
from typing import Any, TypedDict

import psutil

from forgellm import catalog
from forgellm.config import ModelConfig, Settings
from forgellm.errors import ConfigError, ForgeLLMError, InvalidRequest, ModelNotLoaded, Unsupported
from forgellm.messages import EngineOptions, LoadPolicy
from forgellm.supervisor import deadlines
from forgellm.supervisor.effects import Orders
from forgellm.supervisor.reload import ReloadPlan, diff, effective, touched
from forgellm.supervisor.slots import LoadOrder

ON_GPU = sys.platform == "darwin"  # there weights are never dequantised by themselves
F32_SHARE = 0.5  # of the memory that is free now: what "auto" may spend on dequantised weights


class LoadOptions(TypedDict, total=False):
    """What a load may say besides the model's name; None, or left out, keeps the config entry's value."""

    adapter_path: str | None
    context_length: int | None
    max_kv_size: int | None
    replicas: int | None
    ttl_s: float | None
    pin: bool | None
    system_prompt: str | None


def load_order(settings: Settings, budget_bytes: int, model: str | None, given: LoadOptions) -> LoadOrder:
    """What a call of Supervisor.load asks for.

    `budget_bytes`: what all workers together may hold. Raises InvalidRequest, ModelNotFound, ModelError …"""
    for name in given:
        if name not in LoadOptions.__annotations__:
            known = ", ".join(LoadOptions.__annotations__)
            raise InvalidRequest(f"a load has no option {name}; there are {known}", field=name)
    adapter_path, ttl_s, pin = given.get("adapter_path"), given.get("ttl_s"), given.get("pin")
    system_prompt = given.get("system_prompt")
    if model is None:
        if adapter_path is None:
            raise InvalidRequest("name a model to load, or an adapter", field="model_name")
        model = catalog.adapter_base(adapter_path, settings)
    model = settings.model_name(model)
    config = settings.models.get(model) or ModelConfig(source=model)
    free_bytes = min(psutil.virtual_memory().available, budget_bytes)
    order = LoadOrder(
        source=catalog.resolve(model, settings, adapter_path=adapter_path),
        options=EngineOptions(
            layout=config.layout or settings.layout,
            memory_budget_bytes=0 if ON_GPU else int(free_bytes * F32_SHARE),
            context_length=given.get("context_length") or config.context_length,
            max_kv_size=given.get("max_kv_size") or config.max_kv_size,
            max_batch=settings.max_batch,
            prefill_chunk_s=settings.prefill_chunk_s,
            prefix_cache_bytes=settings.prefix_cache_bytes,
            cache_dir=str(settings.cache_path),
            verify_weights=settings.verify_weights,
        ),
        replicas=given.get("replicas") or config.replicas,
        ttl_s=config.ttl_s if ttl_s is None else ttl_s,
        pin=config.pin if pin is None else pin,
        priority=config.priority,
        system_prompt=config.system_prompt if system_prompt is None else system_prompt,
        progress_timeout_s=config.progress_timeout_s,
        timeouts=deadlines.of(config),
        on_demand=_is_on_demand(settings, config),
        aliases=settings.aliases_of(model),
        given=dict(given),
    )
    if order.source.task == "embed":
        for name, value in (("max_kv_size", order.options.max_kv_size), ("system_prompt", order.system_prompt)):
            if value is not None:
                raise Unsupported(f"{name}: {model} is an embedding model and has no use for it", field=name)
    return order


def demanded(
    settings: Settings, budget_bytes: int, model: str, policy: LoadPolicy | None = None
) -> LoadOrder | ForgeLLMError:
    """How to load a model that a request names and that nobody loaded; or why a request may not have it loaded, or why
    it cannot be. `model` is no alias. `policy`: that of whoever asks, see Request.load_policy."""
    if policy == "preloaded":
        return ModelNotLoaded(
            f'{model} is not loaded, and the load_policy of your API key is "preloaded"; have it loaded first',
            field="model",
        )
    if not _is_on_demand(settings, settings.models.get(model) or ModelConfig(source=model), policy):
        return ModelNotLoaded(
            f'{model} is not loaded, and its load_policy is "preloaded"; load it first', field="model"
        )
    if catalog.is_path(model):  # or whoever may ask could have any folder of this machine read
        return ModelNotLoaded(
            f"{model} is not loaded, and requests load nothing by its path; load it first", field="model"
        )
    try:
        return load_order(settings, budget_bytes, model, {})
    except ForgeLLMError as error:
        return error


def _is_on_demand(settings: Settings, config: ModelConfig, policy: LoadPolicy | None = None) -> bool:
    """The model's own policy comes first, then that of whoever asks, then the server's."""
    return config.preload or (config.load_policy or policy or settings.load_policy) == "on_demand"


def reload_orders(old: Settings, new: Settings, budget_bytes: int, now: Orders) -> tuple[ReloadPlan, list[LoadOrder]]:
    """What going over from `old` settings to `new` ones does, and the orders of the loaded models (`now`) that it
    changes; those that could not follow their settings before are tried again.

    Raises ConfigError naming the model whose new entry cannot be used."""
    wanted = effective(old, new)
    loaded = now.by_name
    again = (name for name in now.outdated if name in new.models)
    names = dict.fromkeys((*touched(old, new, loaded), *again))
    orders = {name: _anew(wanted, budget_bytes, name, loaded[name].given) for name in names}
    plan = diff(old, new, loaded, orders)
    for name in plan.loaded:
        _anew(wanted, budget_bytes, name, {})
    return plan, [order for name, order in orders.items() if order != loaded[name]]


def _anew(settings: Settings, budget_bytes: int, name: str, given: Mapping[str, Any]) -> LoadOrder:
    try:
        return load_order(settings, budget_bytes, name, LoadOptions(**given))  # type: ignore[typeddict-item]  # an earlier load took them
    except ForgeLLMError as error:
        raise ConfigError(f"models.{name}: {error.message}") from error
