"""Turns a load call into a LoadOrder: the name resolved, the config entry and the settings filled in.

Reads files and how much memory is free; must not load, spawn or decide.
"""

import sys

import psutil

from forgellm import catalog
from forgellm.config import ModelConfig, Settings
from forgellm.errors import InvalidRequest
from forgellm.messages import EngineOptions
from forgellm.supervisor import deadlines
from forgellm.supervisor.slots import LoadOrder

ON_GPU = sys.platform == "darwin"  # there weights are never dequantised by themselves
F32_SHARE = 0.5  # of the memory that is free now: what "auto" may spend on dequantised weights


def load_order(
    settings: Settings,
    budget_bytes: int,
    model: str | None,
    *,
    adapter_path: str | None = None,
    context_length: int | None = None,
    max_kv_size: int | None = None,
    replicas: int | None = None,
    ttl_s: float | None = None,
    pin: bool | None = None,
    system_prompt: str | None = None,
) -> LoadOrder:
    """What a call of Supervisor.load asks for; None keeps the config entry's value.

    `budget_bytes`: what all workers together may hold. Raises InvalidRequest, ModelNotFound, ModelError …"""
    if model is None:
        if adapter_path is None:
            raise InvalidRequest("name a model to load, or an adapter", field="model_name")
        model = catalog.adapter_base(adapter_path, settings)
    config = settings.models.get(model) or ModelConfig(source=model)
    free_bytes = min(psutil.virtual_memory().available, budget_bytes)
    return LoadOrder(
        source=catalog.resolve(model, settings, adapter_path=adapter_path),
        options=EngineOptions(
            layout=config.layout or settings.layout,
            memory_budget_bytes=0 if ON_GPU else int(free_bytes * F32_SHARE),
            context_length=context_length or config.context_length,
            max_kv_size=max_kv_size or config.max_kv_size,
            max_batch=settings.max_batch,
            prefill_chunk_s=settings.prefill_chunk_s,
            prefix_cache_bytes=settings.prefix_cache_bytes,
            cache_dir=str(settings.cache_path),
        ),
        replicas=replicas or config.replicas,
        ttl_s=config.ttl_s if ttl_s is None else ttl_s,
        pin=config.pin if pin is None else pin,
        priority=config.priority,
        system_prompt=config.system_prompt if system_prompt is None else system_prompt,
        progress_timeout_s=config.progress_timeout_s,
        timeouts=deadlines.of(config),
    )
