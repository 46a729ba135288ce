"""The pool as the caller of this request may use it: the models of its key, and its name on what it asks.

Every view of every dialect gets the pool through here, so that none can forget the question. Holds nothing of its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from forgellm.api.auth import Caller, caller
from forgellm.api.pool import Downloads, Pool
from forgellm.catalog import CatalogEntry, Job, Removed, pulling
from forgellm.errors import JobNotFound
from forgellm.messages import Request
from forgellm.supervisor import Drained, Generation, Loaded, PoolStatus, Unloaded
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.orders import LoadOptions
from forgellm.supervisor.reload import ReloadPlan
from forgellm.supervisor.status import LoadPlan
from forgellm.supervisor.watch import Wants, Watch


class GuardedPool:
    """A Pool. What names a model that the caller may not use raises ForbiddenModel; lists leave those out."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def downloads(self) -> Downloads:
        return _GuardedDownloads(self._pool.downloads, caller())

    def load(
        self,
        model: str | None = None,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        **options: Unpack[LoadOptions],
    ) -> Loaded:
        caller().allow(model)
        return self._pool.load(model, wait=wait, timeout_s=timeout_s, **options)

    def plan(self, model: str | None = None, **options: Unpack[LoadOptions]) -> LoadPlan:
        caller().allow(model)
        return self._pool.plan(model, **options)

    def unload(self, model: str | None = None, *, force: bool = False, timeout_s: float | None = None) -> Unloaded:
        caller().allow(model)
        return self._pool.unload(model, force=force, timeout_s=timeout_s)

    def drain(self, model: str | None = None, *, timeout_s: float | None = None) -> Drained:
        caller().allow(model)
        return self._pool.drain(model, timeout_s=timeout_s)

    def resume(self, model: str | None = None) -> None:
        caller().allow(model)
        self._pool.resume(model)

    def reload(self, *, dry_run: bool = False) -> ReloadPlan:
        caller().allow(None)
        return self._pool.reload(dry_run=dry_run)

    def submit(self, request: Request) -> Generation:
        who = caller()
        who.allow(request.model)
        who.allow_keep_alive(request.keep_alive_s)
        return self._pool.submit(replace(request, client=who.id, load_policy=who.load_policy))

    def status(self) -> PoolStatus:
        who, found = caller(), self._pool.status()
        current = found.current if found.current is not None and who.may_use(found.current) else None
        return replace(
            found,
            models=tuple(each for each in found.models if who.may_use(each.name)),
            put_away={name: prompt for name, prompt in found.put_away.items() if who.may_use(name)},
            current=current,
        )

    def counts(self, *, timeout_s: float = 5.0) -> Counts:
        who, found = caller(), self._pool.counts(timeout_s=timeout_s)
        return replace(found, models=tuple(each for each in found.models if who.may_use(each.model)))

    def watch(self, wants: Wants | None = None) -> Watch:
        who = caller()
        return self._pool.watch(lambda model: who.may_use(model) and (wants is None or wants(model)))

    def catalog(self) -> Sequence[CatalogEntry]:
        who = caller()
        return [entry for entry in self._pool.catalog() if who.may_use(entry.id)]


class _GuardedDownloads:
    """Downloads, of the models that `who` may use. The other jobs are not there. A stream may go on using it."""

    def __init__(self, downloads: Downloads, who: Caller) -> None:
        self._downloads = downloads
        self._who = who

    def pull(self, model: str, revision: str | None = None) -> Job:
        self._who.allow(pulling.model_name(pulling.parse(model, revision)))
        return self._downloads.pull(model, revision)

    def jobs(self) -> list[Job]:
        return [job for job in self._downloads.jobs() if self._who.may_use(job.model)]

    def job(self, job_id: str) -> Job:
        found = self._downloads.job(job_id)
        if not self._who.may_use(found.model):
            raise JobNotFound("there is no such job; GET /api/jobs lists them", field="job_id")
        return found

    def cancel(self, job_id: str) -> Job:
        self.job(job_id)
        return self._downloads.cancel(job_id)

    def remove(self, model: str) -> Removed:
        self._who.allow(model)
        return self._downloads.remove(model)
