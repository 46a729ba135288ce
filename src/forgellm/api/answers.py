"""Carries the generations of one HTTP request to its client, whole or as a stream, for any dialect.

Knows no bodies and no formats: a dialect turns pieces into bytes, and says how its errors and its pings look.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from flask import Response, request

from forgellm.api import access
from forgellm.api.context import context
from forgellm.api.errors import ClientGone, Problem, problem_of
from forgellm.api.gate import Gate
from forgellm.api.pool import Pool
from forgellm.api.wsgi_host import client_gone
from forgellm.errors import ForgeLLMError, InvalidRequest, ShuttingDown, Unavailable, from_wire
from forgellm.messages import Request, Usage
from forgellm.supervisor.generation import Generation, Token

POLL_S = 0.1  # how soon a client that went away is noticed, while its request queues, prefills or writes
WRITE_EVERY_S = 0.02
"""A stream faster than this gets several tokens in one write: nobody sees the difference, and both ends save a wake-up
and a system call for each token left out."""
QUIET_S = 1.0  # a stream says something after so long without a token: proxies and clients see that it lives
STATUS_WAIT_S = 10.0
"""So long the status line waits for the first token, so that what goes wrong before it has a real status. Then the
stream is opened, for a client or a proxy that waits a minute for the first byte."""

IsGone = Callable[[], bool]
Piece = tuple[int, Token | None]
"""One token of the generation number `int`; None: it has ended, and its `finish_reason` and `usage` are set."""


class Answers:
    """The generations of one HTTP request. Holds one place in the gate until close(), which also aborts what runs."""

    def __init__(
        self,
        pool: Pool,
        requests: Sequence[Request],
        gate: Gate,
        is_gone: IsGone,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Submit all of them. Raises Unavailable or ShuttingDown if the gate lets nobody in, and what submit raises.

        `names`: what the client calls the fields of Request, for the errors that name one."""
        self._gate = gate
        self._is_gone = is_gone
        self._closed = False
        self._names = names
        self.generations: list[Generation] = []
        gate.enter()
        try:
            for each in requests:
                self.generations.append(pool.submit(each))
        except BaseException:  # whatever it was, it goes on up; the place and what was submitted are given back
            self.close()
            raise

    def batches(self) -> Iterator[list[Piece]]:
        """All pieces that queued up since the last batch, until every generation has ended; [] after a quiet second.

        Raises what ended a generation early, ClientGone and ShuttingDown."""
        running = dict(enumerate(self.generations))
        last_word = time.monotonic()
        while running:
            pieces = self._take(running)
            if self._is_gone():
                raise ClientGone("the client closed its connection")
            now = time.monotonic()
            if pieces or now - last_word >= QUIET_S:
                last_word = now
                yield pieces
                if running and any(token and (token.text or token.parts) for _, token in pieces):
                    # else nothing was written, and the first text must not wait
                    next(iter(running.values())).wait_ended(WRITE_EVERY_S)
            if self._gate.is_stopping and not all(each.has_ended for each in running.values()):
                raise ShuttingDown("the server is shutting down", retry_after_s=5)

    def _take(self, running: dict[int, Generation]) -> list[Piece]:
        """What has come, waiting a moment for something to come; takes those that ended out of `running`."""
        pieces: list[Piece] = []
        wait_s = POLL_S / len(running)
        for index, generation in list(running.items()):
            had_ended = generation.has_ended  # asked first: tokens may come with the end, after take() gave up
            try:
                tokens = generation.take(0.0 if pieces else wait_s)
            except InvalidRequest as error:
                raise self._renamed(error) from error
            pieces += ((index, token) for token in tokens)
            if had_ended and (generation.finish_reason is not None or not tokens):  # else: the next take() raises
                pieces.append((index, None))
                del running[index]
        return pieces

    def _renamed(self, error: InvalidRequest) -> ForgeLLMError:
        """The error of a worker or the pool, which know the fields of Request, in the client's words."""
        name = self._names.get(error.field or "")
        if name is None or error.field is None:
            return error
        message = error.message.removeprefix(f"{error.field}: ").removeprefix(f"{error.field} ")
        return from_wire(error.code, f"`{name}`: {message}", name)

    def pieces(self) -> Iterator[Piece]:
        """Every piece, for an answer that is sent whole. Closes at the end, however it comes."""
        try:
            for batch in self.batches():
                yield from batch
        finally:
            self.close()

    @property
    def usages(self) -> list[Usage]:
        """What each generation that ended so far cost."""
        return [generation.usage for generation in self.generations if generation.usage is not None]

    def close(self) -> None:
        """Abort what still runs, and leave the gate. Idempotent."""
        if not self._closed:
            self._closed = True
            for generation in self.generations:
                generation.close()
            self._gate.leave()


def begin(requests: Sequence[Request], names: Mapping[str, str] = MappingProxyType({})) -> Answers:
    """Submit the requests of the HTTP request that is being served; the first one's id names them all.

    `names`: see Answers."""
    ctx = context()
    answers = Answers(ctx.pool, access.adopt(requests), ctx.gate, client_gone(request.environ), names)
    access.follow(answers.generations)
    return answers


def finish_reason(generation: Generation) -> Any:
    """Why it ended. Dialects have no word for an answer that the server ended: that is an error, Unavailable."""
    if generation.finish_reason in {"abort", "error"}:
        raise Unavailable("the answer was ended before it was complete: its model was unloaded")
    return generation.finish_reason


class Held(Protocol):
    """What a stream holds while it lasts."""

    def close(self) -> None:
        """Give it back. Idempotent."""


def stream(
    answers: Held,
    frames: Iterator[bytes],
    *,
    mimetype: str,
    failure: Callable[[Problem], bytes],
    ping: bytes = b"",
    status_wait_s: float | None = None,
) -> Response:
    """The response that sends `frames`: whole frames per write, b"" after a quiet second (`ping` is sent for it).

    `failure` draws what goes wrong after the first byte, as the last frame. Raises what goes wrong before it.
    `status_wait_s`: how long the status line waits for the first frame; None: STATUS_WAIT_S.
    """
    try:
        first = _first(frames, STATUS_WAIT_S if status_wait_s is None else status_wait_s)
    except BaseException:  # whatever it was, it goes on up; only the place in the gate is given back
        answers.close()
        raise
    response = Response(_writes(first, frames, failure, ping), mimetype=mimetype)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold the frames back
    response.call_on_close(answers.close)
    return response


def _first(frames: Iterator[bytes], wait_s: float) -> bytes:
    """The first frame; b"" if there is none after `wait_s`."""
    deadline = time.monotonic() + wait_s
    for frame in frames:
        if frame or time.monotonic() >= deadline:
            return frame
    return b""


def _writes(first: bytes, frames: Iterator[bytes], failure: Callable[[Problem], bytes], ping: bytes) -> Iterator[bytes]:
    try:
        yield first or ping
        for frame in frames:
            if frame or ping:
                yield frame or ping
    except ClientGone:
        return
    except Exception as error:  # noqa: BLE001 - the headers are sent: this frame is the only way left to say it
        yield failure(problem_of(error))
