"""The pulls of a daemon, for its clients. Holds nothing: the daemon has the jobs and their processes."""

from collections.abc import Callable
from typing import Any

from forgellm.catalog import Job, Removed
from forgellm.control import frames
from forgellm.control.frames import Call


class RemoteDownloads:
    """As catalog.Downloads. `ask(call, type of its answer)` asks the daemon. What changes something is safe to ask
    twice: a model is fetched once at a time, and a job ended once."""

    def __init__(self, ask: Callable[[Call, type[Any]], Any], once: Callable[[Call, type[Any], float], Any]) -> None:
        self._ask = ask
        self._once = once

    def pull(self, model: str, revision: str | None = None) -> Job:
        """As Downloads.pull()."""
        job: Job = self._ask(frames.Pull(model, revision), Job)
        return job

    def jobs(self) -> list[Job]:
        """As Downloads.jobs()."""
        found: list[Job] = self._ask(frames.Jobs(), list)
        return found

    def job(self, job_id: str) -> Job:
        """As Downloads.job()."""
        found: Job = self._ask(frames.OneJob(job_id), Job)
        return found

    def cancel(self, job_id: str) -> Job:
        """As Downloads.cancel()."""
        found: Job = self._ask(frames.CancelJob(job_id), Job)
        return found

    def remove(self, model: str) -> Removed:
        """As Downloads.remove(). Not asked twice: the second answer would be that it is not there."""
        found: Removed = self._once(frames.Remove(model), Removed, REMOVAL_S)
        return found


REMOVAL_S = 60.0  # of a daemon that deletes many files
