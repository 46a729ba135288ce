"""POST /api/pull and DELETE /api/delete: the daemon's jobs as Ollama draws them. Fetches and removes nothing itself.

A job belongs to the daemon, not to who asked for it: a client that leaves ends what it was told, and not the job.
"""

import threading
from collections.abc import Iterator

import msgspec
from flask import Response, request

from forgellm.api import answers
from forgellm.api.context import Context, context
from forgellm.api.dialect import read
from forgellm.api.errors import ClientGone, json_response
from forgellm.api.ollama.texts import MIMETYPE, failure
from forgellm.api.schemas import ollama_answers as out
from forgellm.api.schemas.ollama_models import OllamaDeleteBody, OllamaPullBody
from forgellm.api.wsgi_host import client_gone
from forgellm.catalog import Job
from forgellm.catalog.downloads import ENDED
from forgellm.errors import ShuttingDown, Unavailable, from_wire

POLL_S = 0.2  # how often its process says how far it is


def pull() -> Response:
    """Have a model fetched, or join the job that fetches it already."""
    body = read(OllamaPullBody)
    followed = _Followed(context(), body.name)
    if body.stream:
        return answers.stream(followed, _lines(followed), mimetype=MIMETYPE, failure=failure)
    try:
        for _ in followed.looks():
            pass
    finally:
        followed.close()
    return json_response(out.Progress(status="success"))


def delete() -> Response:
    """Remove a repository from the Hugging Face cache."""
    context().pool.downloads.remove(read(OllamaDeleteBody).name)
    return json_response(out.Progress(status="success"))


class _Followed:
    """A job that a client follows. Holds a place in the gate until close()."""

    def __init__(self, ctx: Context, model: str) -> None:
        self._gate = ctx.gate
        self._downloads = ctx.pool.downloads
        self._is_gone = client_gone(request.environ)
        self._is_closed = False
        self._gate.enter()
        try:
            self._job = self._downloads.pull(model)
        except BaseException:  # whatever it was, it goes on up; only the place in the gate is given back
            self.close()
            raise

    def looks(self) -> Iterator[Job]:
        """The job as it is, again and again until it is done. Raises why it failed, ClientGone and ShuttingDown."""
        pause = threading.Event()
        while self._job.state not in ENDED:
            yield self._job
            pause.wait(POLL_S)
            if self._is_gone():
                raise ClientGone("the client closed its connection")
            if self._gate.is_draining:
                raise ShuttingDown("the server is shutting down", retry_after_s=5)
            self._job = self._downloads.job(self._job.id)
        if self._job.state == "cancelled":
            raise Unavailable(f"the pull of {self._job.model} was cancelled; the next one goes on from there")
        if self._job.state == "failed":
            raise from_wire(self._job.error_code or "", self._job.error or "the pull failed")
        yield self._job

    def close(self) -> None:
        """Leave the gate. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._gate.leave()


def _lines(followed: _Followed) -> Iterator[bytes]:
    """One at each look, so that no proxy takes a slow pull for a dead one."""
    for job in followed.looks():
        yield _line(_progress(job))
    yield _line(out.Progress(status="success"))


def _progress(job: Job) -> out.Progress:
    """All files of the model are one to Ollama's clients, which draw a bar for each `digest`."""
    if job.total_bytes is None:
        return out.Progress(status="pulling manifest")
    return out.Progress(
        status=f"pulling {job.model}", digest=f"sha1:{job.commit}", total=job.total_bytes, completed=job.done_bytes
    )


def _line(progress: out.Progress) -> bytes:
    return msgspec.json.encode(progress) + b"\n"
