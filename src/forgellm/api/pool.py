"""What the API asks of a pool: the verbs of `Supervisor`, as a protocol. Types only; nothing here acts."""

from collections.abc import Sequence
from typing import Protocol

from forgellm.messages import Request
from forgellm.supervisor.generation import Generation
from forgellm.supervisor.status import LoadPlan, PoolStatus


class Loaded(Protocol):
    """How a load ended: the model's name, its adapter, the seconds it took (None if it was not waited for)."""

    @property
    def model(self) -> str: ...
    @property
    def adapter_path(self) -> str | None: ...
    @property
    def loading_time_s(self) -> float | None: ...
    @property
    def already_loaded(self) -> bool: ...


class Unloaded(Protocol):
    """How an unload ended: which model, whether it was there, and the bytes that came back."""

    @property
    def model(self) -> str | None: ...
    @property
    def was_loaded(self) -> bool: ...
    @property
    def freed_bytes(self) -> int: ...


class CatalogEntry(Protocol):
    """A model that could be loaded. kind: "base", "cpt" or "ift"; `size_bytes` is 0 when not known."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


class Pool(Protocol):
    """The part of `Supervisor` that views call; every error is a ForgeLLMError."""

    def load(
        self,
        model: str | None = None,
        *,
        adapter_path: str | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        context_length: int | None = None,
        max_kv_size: int | None = None,
        replicas: int | None = None,
        ttl_s: float | None = None,
        pin: bool | None = None,
        system_prompt: str | None = None,
    ) -> Loaded: ...

    def plan(
        self,
        model: str | None = None,
        *,
        adapter_path: str | None = None,
        context_length: int | None = None,
        max_kv_size: int | None = None,
        replicas: int | None = None,
        ttl_s: float | None = None,
        pin: bool | None = None,
        system_prompt: str | None = None,
    ) -> LoadPlan: ...

    def unload(self, model: str | None = None, *, force: bool = False, timeout_s: float | None = None) -> Unloaded: ...

    def submit(self, request: Request) -> Generation: ...

    def status(self) -> PoolStatus: ...

    def catalog(self) -> Sequence[CatalogEntry]: ...
