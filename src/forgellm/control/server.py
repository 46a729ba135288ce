"""Serves a pool's verbs to other processes: one connection a call or a generation, each in a thread of its own.

Decides nothing about models, and knows no kind of socket: a Listener accepts and says who may speak. Its accept loop
survives whatever a peer does.
"""

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from forgellm import typed
from forgellm.control import frames
from forgellm.control.frames import BadFrame, Call, Failed, News
from forgellm.control.link import Link, LinkLost
from forgellm.errors import ForgeLLMError, InvalidRequest, ShuttingDown, Unavailable
from forgellm.messages import Request
from forgellm.supervisor import Supervisor
from forgellm.supervisor.orders import LoadOptions

log = logging.getLogger(__name__)

CONNECTIONS = 256
CALL_TIMEOUT_S = 10.0  # from the handshake to the end of the call's frame
SLOW_CONSUMER_TIMEOUT_S = 30.0
POLL_S = 0.1  # how soon a quiet stream's client is missed
ACCEPT_PAUSE_S = 0.1  # after an accept that failed: out of descriptors, most likely
REASONS = 256  # kinds of refusals that are logged, once each

ALWAYS = (frames.Status, frames.Catalog, frames.About, frames.Counted, frames.Abort)
"""Calls that a daemon answers also while it stops."""


class Listener(Protocol):
    """One way in. `sock` listens already; admit() runs in the connection's thread and takes a bounded time."""

    @property
    def sock(self) -> socket.socket: ...

    def admit(self, sock: socket.socket) -> Link | None:
        """None: what it came for is done. Raises BadFrame, LinkLost, OSError, or an error that the client was told."""


class ControlServer:
    """start(), then drain(), wait_empty() and close() if there is time, then stop(); each once."""

    def __init__(
        self,
        pool: Supervisor,
        identity: frames.Identity,
        listeners: Sequence[Listener],
        *,
        connections: int = CONNECTIONS,
    ) -> None:
        self._pool = pool
        self._identity = identity
        self._listeners = listeners
        self._limit = connections
        self._sockets: dict[socket.socket, threading.Thread] = {}
        self._streams = 0
        self._news = threading.Condition()
        self._is_draining = False
        self._is_closing = False
        self._refused: set[str] = set()
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._accept_all, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Nothing new from now on, but for questions; what runs may finish."""
        self._is_draining = True

    def wait_empty(self, timeout_s: float) -> bool:
        """Whether every generation has ended within `timeout_s`."""
        with self._news:
            return self._news.wait_for(lambda: self._streams == 0, timeout_s)

    def close(self) -> None:
        """Nothing new from now on, and what runs ends with an error that says why."""
        self._is_draining = self._is_closing = True

    def stop(self, timeout_s: float = 2.0) -> None:
        """Accept nobody any more; give what was just answered a moment to go out, then cut the rest. Idempotent."""
        self.drain()
        self._wake.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        deadline = time.monotonic() + timeout_s
        with self._news:
            threads = list(self._sockets.items())
        for _, thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for sock, thread in threads:
            if thread.is_alive():
                Link(sock, "a client").close()
                thread.join(1.0)

    # Accepting -------------------------------------------------------------------------------------------------------

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector, self._waker:
            selector.register(self._waker, selectors.EVENT_READ)
            for listener in self._listeners:
                listener.sock.setblocking(False)
                selector.register(listener.sock, selectors.EVENT_READ, listener)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    try:
                        self._accept(key.data)
                    except OSError as error:
                        if not isinstance(error, BlockingIOError):
                            self._note(f"accept fails: {error}")
                            time.sleep(ACCEPT_PAUSE_S)

    def _accept(self, listener: Listener) -> None:
        sock, _ = listener.sock.accept()
        sock.setblocking(True)
        with self._news:
            is_full = len(self._sockets) >= self._limit
            if not is_full:
                thread = threading.Thread(target=self._serve, args=(listener, sock), name="control-link", daemon=True)
                self._sockets[sock] = thread
        if is_full:
            self._turn_away(sock)
            return
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._forget(sock)
            self._turn_away(sock)

    def _turn_away(self, sock: socket.socket) -> None:
        """Answered before any work, and without waiting: a few bytes fit into any new socket's buffer."""
        link = Link(sock, "a client")
        busy = Unavailable(f"{self._limit} connections are served, the most this daemon takes")
        link.offer(Failed.of(busy), 0.0)
        link.close()

    def _forget(self, sock: socket.socket) -> None:
        with self._news:
            self._sockets.pop(sock, None)

    def _note(self, reason: str) -> None:
        """Log a refusal once, however often it happens."""
        if reason not in self._refused and len(self._refused) < REASONS:
            self._refused.add(reason)
            log.warning("control socket: %s (told once)", reason)

    # One connection --------------------------------------------------------------------------------------------------

    def _serve(self, listener: Listener, sock: socket.socket) -> None:
        link: Link | None = None
        try:
            link = listener.admit(sock)
            if link is None:
                return
            call = link.receive(frames.CALL, time.monotonic() + CALL_TIMEOUT_S)
            self._answer(link, call)
        except ForgeLLMError as error:
            self._note(error.message)
        except (BadFrame, LinkLost, OSError) as error:
            if link is None:  # later, a client that leaves is nothing to tell
                self._note(str(error))
        except Exception:  # the thread's outermost edge: a bug must cost one connection only
            log.exception("a control connection has failed")
        finally:
            for each in (link, Link(sock, "a client")):  # the same socket, or a secured one over it
                if each is not None:
                    each.close()
            self._forget(sock)

    def _answer(self, link: Link, call: Call) -> None:
        if self._is_draining and not isinstance(call, ALWAYS):
            self._say(link, Failed.of(_shutting_down()))
        elif isinstance(call, frames.Submit):
            with self._news:
                self._streams += 1
            try:
                self._stream(link, call.request)
            finally:
                with self._news:
                    self._streams -= 1
                    self._news.notify_all()
        elif isinstance(call, frames.Follow):
            self._follow(link)
        else:
            self._say(link, self._outcome(lambda: self._call(call)))

    def _outcome(self, call: Callable[[], Any]) -> frames.Answer | Failed:
        try:
            return frames.answer(call())
        except ForgeLLMError as error:
            return Failed.of(error)
        except Exception as error:  # told to the client as a code; the text may hold anything, and stays here
            log.exception("a call over the control socket has failed")
            return Failed(ForgeLLMError.code, f"internal error ({type(error).__name__}); the daemon's log says more")

    def _call(self, call: Call) -> Any:  # noqa: PLR0911, PLR0912 - one line for each call
        match call:
            case frames.Status():
                return self._pool.status()
            case frames.Catalog():
                return list(self._pool.catalog())
            case frames.About():
                return self._identity
            case frames.Plan(model, options):
                return self._pool.plan(model, **_options(options))
            case frames.Load(model, wait, timeout_s, options):
                return self._pool.load(model, wait=wait, timeout_s=timeout_s, **_options(options))
            case frames.Unload(model, force, timeout_s):
                return self._pool.unload(model, force=force, timeout_s=timeout_s)
            case frames.Reload(dry_run):
                return self._pool.reload(dry_run=dry_run)
            case frames.Drain(model, timeout_s):
                return self._pool.drain(model, timeout_s=timeout_s)
            case frames.Resume(model):
                return self._pool.resume(model)
            case frames.Counted(timeout_s):
                return self._pool.counts(timeout_s=timeout_s)
            case frames.Abort(request_id):
                return self._pool.abort(request_id)
            case frames.Pull(model, revision):
                return self._pool.downloads.pull(model, revision)
            case frames.Jobs():
                return self._pool.downloads.jobs()
            case frames.OneJob(job_id):
                return self._pool.downloads.job(job_id)
            case frames.CancelJob(job_id):
                return self._pool.downloads.cancel(job_id)
            case frames.Remove(model):
                return self._pool.downloads.remove(model)
            case frames.Submit() | frames.Follow():
                raise AssertionError("these are streamed")

    def _stream(self, link: Link, request: Request) -> None:
        """All news of one request, until its end or its client's; empty news when there has been none for a while."""
        with self._pool.submit(request) as generation:
            prefill, last_word = generation.prefill, time.monotonic()
            while True:
                had_ended = generation.has_ended  # asked first: tokens may come with the end, after take() gave up
                try:
                    tokens = generation.take(POLL_S)
                except ForgeLLMError as error:
                    self._say(link, Failed.of(error))
                    return
                moved, prefill = generation.prefill != prefill, generation.prefill
                is_quiet = time.monotonic() - last_word > frames.PING_S
                if tokens or moved or had_ended or is_quiet:
                    last_word = time.monotonic()
                    reason, usage = (generation.finish_reason, generation.usage) if had_ended else (None, None)
                    self._say(link, News(frames.wire_tokens(tokens), prefill if moved else None, reason, usage))
                elif link.is_gone():
                    return
                if had_ended:
                    return
                if self._is_closing:
                    self._say(link, Failed.of(_shutting_down()))
                    return

    def _follow(self, link: Link) -> None:
        """What happens, until the client leaves or the daemon stops. No reason for a stop to wait."""
        with self._pool.watch() as watch:
            self._say(link, frames.Happened())  # from here on nothing is missed
            while not link.is_gone():
                changes = watch.take(POLL_S)
                is_over = watch.has_ended or self._is_draining
                if changes or is_over:
                    self._say(link, frames.Happened(frames.wire_changes(changes), is_over, watch.is_lost))
                if is_over:
                    return

    def _say(self, link: Link, frame: Any) -> None:
        """Raises LinkLost for a client that does not take it in time: a slow consumer is cut."""
        link.send(frame, time.monotonic() + SLOW_CONSUMER_TIMEOUT_S)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the daemon is shutting down", retry_after_s=5.0)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a load, their types checked; one that does not exist is for the pool to refuse."""
    if given.keys() - LoadOptions.__annotations__.keys():
        return given
    try:
        return dict(typed.convert(given, LoadOptions))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"a load's options: {error}") from error
