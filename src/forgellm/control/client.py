"""`ModelManager`: the verbs of a Supervisor, carried out by the daemon that runs, or by one that it starts.

Holds no state of the models, so any number of instances agree; holds no connection between calls, so it survives a
fork and a restart of the daemon. Must not decide: the daemon's pool does.
"""

import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from forgellm.catalog import CatalogEntry
from forgellm.config import Settings, load_settings
from forgellm.control import frames
from forgellm.control.address import Address, parse
from forgellm.control.frames import BadFrame, Call, Failed
from forgellm.control.launch import start_daemon
from forgellm.control.link import Link, LinkLost
from forgellm.control.remote import RemoteGeneration
from forgellm.control.remote_downloads import RemoteDownloads
from forgellm.control.remote_watch import RemoteWatch
from forgellm.control.unix import UnixAddress
from forgellm.errors import ModelNotLoaded, SupervisorUnavailable, VersionSkew
from forgellm.messages import Request, Timeouts
from forgellm.states import IS_LOADED, IS_LOADING, WorkerState
from forgellm.supervisor import Drained, Embeddings, Generation, Loaded, PoolStatus, Unloaded
from forgellm.supervisor.asking import GenerateOptions, embedding_request, python_request, seeded
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.orders import LoadOptions
from forgellm.supervisor.reload import ReloadPlan
from forgellm.supervisor.status import LoadPlan
from forgellm.supervisor.watch import Wants, Watch

SEND_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0  # of a busy daemon, beside the work that was asked for
LOAD_PAUSE_S = 0.2

_Result = TypeVar("_Result")


class _Lost(SupervisorUnavailable):
    """The daemon went away between the call and its answer, so nobody knows whether it was carried out."""


class ModelManager:
    """A client of the daemon of this user: `ModelManager().load("smollm2")`.

    `settings` say where the daemon is, and how one is started; without them, the environment does. `connect`
    ("unix:///path/control.sock", or "tls://host:port" of a paired machine) names a daemon instead, which is then never
    started from here; it may stand in the place of `settings`. `autostart` false:
    none is started at all. `resume_timeout_s`: how long a running answer waits for a daemon that was lost.
    Every verb raises SupervisorUnavailable when no daemon answers.
    """

    def __init__(
        self,
        settings: Settings | str | None = None,
        *,
        connect: str | None = None,
        autostart: bool = True,
        resume_timeout_s: float = 30.0,
    ) -> None:
        if isinstance(settings, str):
            settings, connect = None, settings
        self.settings = settings or load_settings()
        self.resume_timeout_s = resume_timeout_s
        self.address: Address = (
            parse(connect, self.settings.machines_path) if connect else UnixAddress(self.settings.socket_path)
        )
        self._autostart = autostart and connect is None
        self.downloads = RemoteDownloads(self._safely, self._once)
        self._live: weakref.WeakValueDictionary[str, RemoteGeneration] = weakref.WeakValueDictionary()

    # Models ----------------------------------------------------------------------------------------------------------

    def load(
        self,
        model: str | None = None,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        **options: Unpack[LoadOptions],
    ) -> Loaded:
        """As Supervisor.load(). A daemon that is lost meanwhile is waited for, and asked again."""
        call = frames.Load(model, wait, timeout_s, dict(options))
        deadline: float | None = None
        while True:
            try:
                return self._once(call, Loaded, timeout_s or self.settings.load_timeout_s)
            except _Lost as error:
                deadline = deadline or time.monotonic() + self.resume_timeout_s
                lost: SupervisorUnavailable = error
            except SupervisorUnavailable as error:
                if deadline is None or isinstance(error, VersionSkew):
                    raise
                lost = error
            if time.monotonic() > deadline:
                raise lost
            time.sleep(LOAD_PAUSE_S)

    def plan(self, model: str | None = None, **options: Unpack[LoadOptions]) -> LoadPlan:
        """As Supervisor.plan()."""
        return self._safely(frames.Plan(model, dict(options)), LoadPlan)

    def unload(self, model: str | None = None, *, force: bool = False, timeout_s: float | None = None) -> Unloaded:
        """As Supervisor.unload(). Not asked twice: a daemon that is lost meanwhile may have done it."""
        return self._once(frames.Unload(model, force, timeout_s), Unloaded, timeout_s or self._stop_timeout_s)

    def drain(self, model: str | None = None, *, timeout_s: float | None = None) -> Drained:
        """As Supervisor.drain()."""
        return self._once(frames.Drain(model, timeout_s), Drained, timeout_s or self._stop_timeout_s)

    def resume(self, model: str | None = None) -> None:
        """As Supervisor.resume()."""
        self._safely(frames.Resume(model), type(None))

    def reload(self, *, dry_run: bool = False) -> ReloadPlan:
        """As Supervisor.reload(): the daemon reads its own settings again."""
        return self._once(frames.Reload(dry_run), ReloadPlan, self._stop_timeout_s)

    def counts(self, *, timeout_s: float = 5.0) -> Counts:
        """As Supervisor.counts(): of the daemon that answers now."""
        return self._safely(frames.Counted(timeout_s), Counts)

    def watch(self, wants: Wants | None = None) -> Watch:
        """As Supervisor.watch(); it ends with the daemon."""
        link = self._dial()
        try:
            return RemoteWatch(link, wants)
        except (LinkLost, BadFrame) as error:
            link.close()
            raise _Lost(f"the daemon was lost: {error}") from error

    def status(self) -> PoolStatus:
        """An immutable picture of everything, as of now."""
        return self._safely(frames.Status(), PoolStatus)

    def catalog(self) -> list[CatalogEntry]:
        """What can be loaded by name."""
        return self._safely(frames.Catalog(), list)

    def about(self) -> frames.Identity:
        """Which daemon answers: its process id, its address for HTTP, its release."""
        return self._safely(frames.About(), frames.Identity)

    # Requests --------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Generation:
        """As Supervisor.submit(): every error arrives through the Generation."""
        generation = RemoteGeneration(seeded(request), self._dial, self.abort, self.resume_timeout_s)
        self._live[request.request_id] = generation
        return generation.open()

    def generate(
        self, model: str, prompt: str | Sequence[Mapping[str, Any]], **options: Unpack[GenerateOptions]
    ) -> Generation:
        """As Supervisor.generate()."""
        return self.submit(python_request(model, prompt, options))

    def embed(
        self,
        model: str,
        inputs: str | Sequence[str | Sequence[int]],
        *,
        truncate: bool = False,
        timeouts: Timeouts | None = None,
    ) -> Embeddings:
        """As Supervisor.embed()."""
        with self.submit(embedding_request(model, inputs, truncate=truncate, timeouts=timeouts)) as generation:
            return Embeddings.of(generation)

    def abort(self, request_id: str) -> None:
        """End a request early, whichever client's it is; unknown or ended ones are ignored."""
        own = self._live.get(request_id)
        self._safely(frames.Abort(own.wire_id if own else request_id), type(None))

    # The words of 0.4.7 ----------------------------------------------------------------------------------------------

    def generate_text(self, prompt: str, model: str | None = None, **options: Unpack[GenerateOptions]) -> str:
        """The whole answer of `model`, or of the current one, to a text. Raises the error that ended it."""
        name = model or self.status().current
        if name is None:
            raise ModelNotLoaded("no model is loaded; load one first", field="model")
        return self.generate(name, prompt, **options).result().text

    def get_status(self) -> dict[str, Any]:
        """The current model: `loaded`, `is_loading`, `model_name`, `adapter_path`, `state`, `progress`, `error`."""
        status = self.status()
        model = status.model(status.current) if status.current else None
        return {
            "loaded": model is not None and model.state in IS_LOADED,
            "is_loading": model is not None and model.state in IS_LOADING,
            "model_name": status.current,
            "adapter_path": model.adapter_path if model else None,
            "state": str(model.state if model else WorkerState.STOPPED),
            "progress": model.progress if model else 0.0,
            "error": model.error if model else None,
        }

    def get_model_info(self, model: str | None = None) -> dict[str, Any] | None:
        """What the model, or the current one, turned out to be (messages.ModelInfo); None if it is not loaded."""
        status = self.status()
        name = model or status.current
        found = status.model(name) if name else None
        if found is None or found.info is None:
            return None
        return {"name": found.name, "path": found.path, "adapter_path": found.adapter_path, **asdict(found.info)}

    def list_models(self) -> list[dict[str, Any]]:
        """What can be loaded by name: `id`, `name`, `path`, `type`, `size_bytes`."""
        return [
            {"id": each.id, "name": each.name, "path": each.path, "type": each.kind, "size_bytes": each.size_bytes}
            for each in self.catalog()
        ]

    def stop_generation(self, request_id: str | None = None) -> None:
        """Abort one request, or all of this client's."""
        for each in [request_id] if request_id else list(self._live):
            self.abort(each)

    # Its own life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Abort what this client has running. The daemon and its models stay."""
        for generation in list(self._live.values()):
            generation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def _stop_timeout_s(self) -> float:
        """The longest that the whole ladder of a stop takes."""
        own = self.settings
        return own.drain_timeout_s + own.unload_timeout_s + own.term_timeout_s

    # Calls -----------------------------------------------------------------------------------------------------------

    def _dial(self, *, may_start: bool = True) -> Link:
        """A connection, to a daemon that is started for it if there is none and that is allowed."""
        try:
            return self.address.dial()
        except VersionSkew:
            raise
        except SupervisorUnavailable:
            if not (may_start and self._autostart and isinstance(self.address, UnixAddress)):
                raise
            start_daemon(self.settings, self.address)
            return self.address.dial()

    def _once(self, call: Call, kind: type[_Result], work_s: float) -> _Result:
        """The answer of a call that takes the daemon up to `work_s`. Raises _Lost if it went away before that."""
        link = self._dial()
        try:
            link.send(call, time.monotonic() + SEND_TIMEOUT_S)
            answer = link.receive(frames.ANSWER, time.monotonic() + work_s + ANSWER_TIMEOUT_S)
            if isinstance(answer, Failed):
                raise answer.error()
            found: _Result = frames.result(call, answer)
            return found
        except (LinkLost, BadFrame) as error:
            raise _Lost(f"the daemon was lost before it answered: {error}") from error
        finally:
            link.close()

    def _safely(self, call: Call, kind: type[_Result]) -> _Result:
        """A call that changes nothing twice: asked once more if the first connection broke."""
        try:
            return self._once(call, kind, 0.0)
        except _Lost:
            return self._once(call, kind, 0.0)
