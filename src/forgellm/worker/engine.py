"""What the worker loop asks of an engine. An engine loads one model and advances many requests, one step at a time.

An engine knows no queues, no processes and no supervisor. All its methods are called on the worker's main thread.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Protocol

from forgellm.messages import Chunk, EngineOptions, ModelInfo, ModelSource, Prefill, Request, RequestFailed

Progress = Callable[[float, str], None]
"""Called with (0..1, stage in words); cheap, may be called often."""

StepResult = tuple[tuple[Chunk, ...], tuple[Prefill | RequestFailed, ...]]
"""What one step gave: chunks (empty during prefill), and the news that is not text."""


class Engine(Protocol):
    """One model, many requests."""

    def load(self, source: ModelSource, options: EngineOptions, progress: Progress) -> ModelInfo:
        """Load the model and warm it up. Raises ModelError (or another ForgeLLMError) if it cannot be served."""

    def add(self, request: Request) -> None:
        """Take a request into the batch; its tokens come from later steps.

        Raises InvalidRequest (ContextLengthExceeded, TemplateError, Unsupported …) before any work is done."""

    def abort(self, request_id: str) -> None:
        """End a request now and free its place; the last chunk (finish_reason "abort", with usage) comes from the next
        step. An unknown id is ignored: it may have ended meanwhile."""

    def has_work(self) -> bool:
        """Whether step() has anything to do."""

    def step(self) -> StepResult:
        """One decode step for all running requests and at most one prefill chunk. A request that raises is ended by a
        RequestFailed in the result; the others go on."""

    def memory(self) -> tuple[int, int]:
        """(active, cache) bytes that the engine's allocator holds."""

    def trim_caches(self) -> None:
        """Memory is short: drop what is only kept to be faster. Nothing that runs may suffer."""

    def close(self) -> None:
        """Free the model. The process ends next."""


def failed(request_id: str, what: str, error: Exception) -> RequestFailed:
    """The news that a library raised something in the middle of one request. Where it did goes into the worker's log,
    with the request's id and without the message, which may hold words of the prompt."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    sys.stderr.write(f"request {request_id}: {what} failed: {type(error).__name__}\n{stack}")
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return RequestFailed(request_id, "generation_failed", f"{what} failed: {text}")
