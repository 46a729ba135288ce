"""Every error that ForgeLLM raises on purpose. Knows no HTTP: api/errors.py alone maps codes to statuses.

    ForgeLLMError
    ├── InvalidRequest               the caller can mend it; `field` names what
    │   ├── EmptyPrompt              there is nothing to answer
    │   ├── ContextLengthExceeded    prompt and answer do not fit the model's context
    │   ├── TemplateError            the model's chat template refused the messages
    │   ├── PayloadTooLarge          the body is larger than the server takes
    │   ├── RequestCrashesWorker     a worker crashed under it, and again when it was run again
    │   └── Unsupported              a known parameter that this model or engine cannot honour
    ├── NotFound                     a name that is not known
    │   ├── ModelNotFound
    │   ├── RequestNotFound
    │   ├── JobNotFound              no download of that id, or one that was forgotten
    │   └── RepositoryNotFound       the hub has no such repository, or no such revision of it
    ├── ModelNotLoaded               known, but nobody loaded it
    ├── ModelInUse                   loaded, or on its way from the hub: it cannot be removed
    ├── HubTokenRequired             a private or gated repository, and no token that opens it
    ├── ModelError                   the model cannot be served as it is
    │   ├── ModelInvalid             broken or lying files
    │   ├── ModelChanged             its files are no longer those that were checked
    │   ├── UnsupportedFormat        pickles, unknown architectures, unknown quantisation
    │   ├── UntrustedCode            the model asks to run its own code
    │   └── DownloadDamaged          what came is not what the hub says the file is
    ├── Unavailable                  try again; `retry_after_s` says when
    │   ├── QueueFull
    │   ├── PoolFull                 too much waits for all models together
    │   ├── QueueTimeout             waited too long for a place
    │   ├── RequestTimeout           no first token, no further token, or no end in time; says which
    │   ├── ModelLoading             not ready within the caller's deadline
    │   ├── ModelUnloading           draining or stopping
    │   ├── Draining                 takes nothing new until it is resumed
    │   ├── ModelFailed              gave up; says why
    │   ├── InsufficientMemory
    │   ├── GpuOutOfMemory           the GPU's memory ran out under a worker
    │   ├── WorkerDied
    │   ├── EngineUnavailable        a worker cannot import its engine; says what is missing
    │   ├── HubUnavailable           the hub does not answer, or no longer
    │   ├── DiskFull                 no room for the files
    │   ├── ShuttingDown
    │   └── SupervisorUnavailable    no daemon answers, or the one that did is gone
    │       └── VersionSkew          daemon and client speak different protocols
    ├── GenerationFailed             one request's own failure inside a healthy worker
    └── StartupError                 the supervisor or the daemon cannot run here
        ├── ChannelUnsafe            the start-up self-test of the worker channel failed
        ├── ConfigError              settings that cannot be used; names the path
        └── AddressInUse

Errors cross process borders as data, `(code, message, field)`, never as pickled exceptions.
"""

from typing import ClassVar

RETRY_AFTER_S = 1.0  # where nobody knows better


class ForgeLLMError(Exception):
    """Root of the tree. `code` is a stable word for programs, `str(error)` a sentence for people."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequest(ForgeLLMError):
    code = "invalid_request"


class EmptyPrompt(InvalidRequest):
    code = "empty"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class TemplateError(InvalidRequest):
    code = "template_error"


class PayloadTooLarge(InvalidRequest):
    code = "payload_too_large"


class RequestCrashesWorker(InvalidRequest):
    code = "request_crashes_worker"


class Unsupported(InvalidRequest):
    code = "unsupported_parameter"


class NotFound(ForgeLLMError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class RequestNotFound(NotFound):
    code = "request_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class RepositoryNotFound(NotFound):
    code = "repository_not_found"


class ModelNotLoaded(ForgeLLMError):
    code = "model_not_loaded"


class ModelInUse(ForgeLLMError):
    code = "model_in_use"


class HubTokenRequired(ForgeLLMError):
    code = "hub_token_required"


class ModelError(ForgeLLMError):
    code = "model_error"


class ModelInvalid(ModelError):
    code = "model_invalid"


class ModelChanged(ModelError):
    code = "model_changed"


class UnsupportedFormat(ModelError):
    code = "unsupported_format"


class UntrustedCode(ModelError):
    code = "untrusted_code"


class DownloadDamaged(ModelError):
    code = "download_damaged"


class Unavailable(ForgeLLMError):
    code = "unavailable"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = RETRY_AFTER_S) -> None:
        super().__init__(message, field=field, retry_after_s=retry_after_s)


class QueueFull(Unavailable):
    code = "queue_full"


class PoolFull(Unavailable):
    code = "pool_full"


class QueueTimeout(Unavailable):
    code = "queue_timeout"


class RequestTimeout(Unavailable):
    code = "request_timeout"


class ModelLoading(Unavailable):
    code = "model_loading"


class ModelUnloading(Unavailable):
    code = "model_unloading"


class Draining(Unavailable):
    code = "draining"


class ModelFailed(Unavailable):
    code = "model_failed"


class InsufficientMemory(Unavailable):
    code = "insufficient_memory"


class GpuOutOfMemory(Unavailable):
    code = "gpu_oom"


class WorkerDied(Unavailable):
    code = "worker_died"


class EngineUnavailable(Unavailable):
    code = "engine_unavailable"


class HubUnavailable(Unavailable):
    code = "hub_unavailable"


class DiskFull(Unavailable):
    code = "disk_full"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class SupervisorUnavailable(Unavailable):
    code = "supervisor_unavailable"


class VersionSkew(SupervisorUnavailable):
    code = "version_skew"


class GenerationFailed(ForgeLLMError):
    code = "generation_failed"


class StartupError(ForgeLLMError):
    code = "startup_error"


class ChannelUnsafe(StartupError):
    code = "channel_unsafe"


class ConfigError(StartupError):
    code = "config_error"


class AddressInUse(StartupError):
    code = "address_in_use"


def _tree(root: type[ForgeLLMError]) -> list[type[ForgeLLMError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


BY_CODE: dict[str, type[ForgeLLMError]] = {cls.code: cls for cls in _tree(ForgeLLMError)}
"""Every class of this module by its code; how an error that travelled as data becomes one again."""


def from_wire(code: str, message: str, field: str | None = None, retry_after_s: float | None = None) -> ForgeLLMError:
    """The error that these stood for; an unknown code becomes a plain ForgeLLMError."""
    return BY_CODE.get(code, ForgeLLMError)(message, field=field, retry_after_s=retry_after_s)
