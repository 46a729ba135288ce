"""What the API asks of a pool: the verbs of `Supervisor`, as a protocol. Types only; nothing here acts."""

from collections.abc import Sequence
from typing import Protocol, Unpack

from forgellm.catalog import CatalogEntry, Job, Removed
from forgellm.messages import Request
from forgellm.supervisor import Drained, Generation, Loaded, PoolStatus, Unloaded
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.orders import LoadOptions
from forgellm.supervisor.reload import ReloadPlan
from forgellm.supervisor.status import LoadPlan
from forgellm.supervisor.watch import Wants, Watch


class Downloads(Protocol):
    """The part of `catalog.Downloads` that views call."""

    def pull(self, model: str, revision: str | None = None) -> Job: ...

    def jobs(self) -> list[Job]: ...

    def job(self, job_id: str) -> Job: ...

    def cancel(self, job_id: str) -> Job: ...

    def remove(self, model: str) -> Removed: ...


class Pool(Protocol):
    """The part of `Supervisor` that views call; every error is a ForgeLLMError."""

    @property
    def downloads(self) -> Downloads: ...

    def load(
        self,
        model: str | None = None,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        **options: Unpack[LoadOptions],
    ) -> Loaded: ...

    def plan(self, model: str | None = None, **options: Unpack[LoadOptions]) -> LoadPlan: ...

    def unload(self, model: str | None = None, *, force: bool = False, timeout_s: float | None = None) -> Unloaded: ...

    def drain(self, model: str | None = None, *, timeout_s: float | None = None) -> Drained: ...

    def resume(self, model: str | None = None) -> None: ...

    def reload(self, *, dry_run: bool = False) -> ReloadPlan: ...

    def submit(self, request: Request) -> Generation: ...

    def status(self) -> PoolStatus: ...

    def watch(self, wants: Wants | None = None) -> Watch: ...

    def counts(self, *, timeout_s: float = 5.0) -> Counts: ...

    def catalog(self) -> Sequence[CatalogEntry]: ...
