"""The words of the control socket: what a client may ask, and what comes back. Data and its bytes; moves nothing.

Every frame is a length (4 bytes, big-endian) and one msgpack object of a known type, never a pickle. `Hello` and
`Failed` keep their shape for ever, so that programs of any two versions can tell each other that they differ.
"""

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.msgpack import Decoder

from forgellm import typed
from forgellm.catalog import CatalogEntry, Job, Removed
from forgellm.errors import ForgeLLMError, InvalidRequest, from_wire
from forgellm.messages import (
    Chunk,
    Embedding,
    FinishReason,
    Part,
    Reasoning,
    Request,
    Stopped,
    TokenLogprobs,
    ToolCall,
    Usage,
)
from forgellm.supervisor import Drained, Loaded, PoolStatus, Token, Unloaded
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.effects import Announce, Died, Evicted, Progressed
from forgellm.supervisor.reload import ReloadPlan
from forgellm.supervisor.status import LoadPlan
from forgellm.supervisor.watch import Change

PROTOCOL = 1
RELEASE = importlib.metadata.version("forgellm")

HEADER_BYTES = 4
HANDSHAKE_LIMIT_BYTES = 4 << 10
PING_S = 5.0  # a generation says at least so often that the daemon is there
FRAME_LIMIT_BYTES = 64 << 20  # well above max_request_bytes, and above the embeddings of one request

_Frame = TypeVar("_Frame")


class BadFrame(Exception):
    """The peer sent what is no frame, or one out of turn. Its connection is closed; nobody else hears of it."""


# Handshake -----------------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First of all, from the client: what it speaks, and 32 random bytes."""

    protocol: int
    release: str
    nonce: bytes


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """The server's random bytes, and its proof that it knows the key."""

    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """The client's proof. Its call may follow without waiting."""

    proof: bytes


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """An error, as data; the last frame of its connection."""

    code: str
    message: str
    field: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: ForgeLLMError) -> "Failed":
        return cls(error.code, error.message, error.field, error.retry_after_s)

    def error(self) -> ForgeLLMError:
        """What was raised on the other side, as the same class."""
        return from_wire(self.code, self.message, self.field, self.retry_after_s)


# Calls: one a connection ---------------------------------------------------------------------------------------------


class Status(msgspec.Struct, frozen=True, tag="status"):
    pass


class Catalog(msgspec.Struct, frozen=True, tag="catalog"):
    pass


class About(msgspec.Struct, frozen=True, tag="about"):
    pass


class Plan(msgspec.Struct, frozen=True, tag="plan"):
    model: str | None
    options: dict[str, Any]


class Load(msgspec.Struct, frozen=True, tag="load"):
    model: str | None
    wait: bool
    timeout_s: float | None
    options: dict[str, Any]


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    model: str | None
    force: bool
    timeout_s: float | None


class Reload(msgspec.Struct, frozen=True, tag="reload"):
    dry_run: bool


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    model: str | None
    timeout_s: float | None


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    model: str | None


class Counted(msgspec.Struct, frozen=True, tag="counts"):
    """What happened since the start, in numbers."""

    timeout_s: float


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    request_id: str


class Pull(msgspec.Struct, frozen=True, tag="pull"):
    model: str
    revision: str | None


class Jobs(msgspec.Struct, frozen=True, tag="jobs"):
    pass


class OneJob(msgspec.Struct, frozen=True, tag="job"):
    job_id: str


class CancelJob(msgspec.Struct, frozen=True, tag="cancel_job"):
    job_id: str


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    model: str


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """Tell what happens to models and workers, as Happened after Happened."""


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Run a request; News comes back until the last one. Closing the connection aborts it."""

    request: Request


Call = (
    Status
    | Catalog
    | About
    | Counted
    | Plan
    | Load
    | Unload
    | Reload
    | Drain
    | Resume
    | Abort
    | Follow
    | Submit
    | Pull
    | Jobs
    | OneJob
    | CancelJob
    | Remove
)


# Answers -------------------------------------------------------------------------------------------------------------


class Identity(msgspec.Struct, frozen=True):
    """Who answers: the daemon's process, its address for HTTP ("" if it has none), its release."""

    pid: int
    url: str
    release: str


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The value that the call is for; its type is in RESULTS."""

    value: msgspec.Raw


WirePart = tuple[str, dict[str, Any]]  # one of several dataclasses: its name, its fields
WireToken = tuple[str, tuple[int, ...], tuple[TokenLogprobs, ...] | None, tuple[WirePart, ...] | None]


class News(msgspec.Struct, frozen=True, tag="news", omit_defaults=True):
    """What came since the last one; all of it may be empty, which says only that the daemon is there."""

    tokens: tuple[WireToken, ...] = ()
    prefill: tuple[int, int] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class Happened(msgspec.Struct, frozen=True, tag="happened", omit_defaults=True):
    """Changes since the last one. After the end no more will come; lost: some are missing."""

    changes: tuple[WirePart, ...] = ()
    has_ended: bool = False
    is_lost: bool = False


# What may come when; made once, because making one costs more than using it.
HELLO = Decoder(Hello)
PROOF = Decoder(Proof)
CHALLENGE: "Decoder[Challenge | Failed]" = Decoder(Challenge | Failed)
CALL: "Decoder[Call]" = Decoder(Call)
ANSWER: "Decoder[Answer | Failed]" = Decoder(Answer | Failed)
NEWS: "Decoder[News | Failed]" = Decoder(News | Failed)

HAPPENED: "Decoder[Happened | Failed]" = Decoder(Happened | Failed)

RESULTS: Mapping[type[Call], "Decoder[Any]"] = {
    Status: Decoder(PoolStatus),
    Catalog: Decoder(list[CatalogEntry]),
    About: Decoder(Identity),
    Plan: Decoder(LoadPlan),
    Load: Decoder(Loaded),
    Unload: Decoder(Unloaded),
    Drain: Decoder(Drained),
    Reload: Decoder(ReloadPlan),
    Resume: Decoder(None),
    Counted: Decoder(Counts),
    Pull: Decoder(Job),
    Jobs: Decoder(list[Job]),
    OneJob: Decoder(Job),
    CancelJob: Decoder(Job),
    Remove: Decoder(Removed),
    Abort: Decoder(None),
}

_KINDS: dict[str, type[Part | Change]] = {
    "reasoning": Reasoning,
    "tool_call": ToolCall,
    "embedding": Embedding,
    "stopped": Stopped,
    "state": Announce,
    "progress": Progressed,
    "death": Died,
    "eviction": Evicted,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def wire_tokens(tokens: Iterable[Token]) -> tuple[WireToken, ...]:
    """Tokens as News carries them."""
    return tuple((token.text, token.token_ids, token.logprobs, _wire_parts(token.parts)) for token in tokens)


def chunks(news: News) -> list[Chunk]:
    """What News stands for, as Generation.put() takes it; the last one ends the generation if News does."""
    found: list[Chunk] = []
    for text, token_ids, logprobs, parts in news.tokens:
        found.append(("", text, token_ids, logprobs, None, None, _parts(parts)))
    if news.finish_reason is not None:
        found.append(("", "", (), None, news.finish_reason, news.usage, None))
    return found


def wire_changes(changes: Iterable[Change]) -> tuple[WirePart, ...]:
    """Changes as Happened carries them."""
    return tuple(_wire(change) for change in changes)


def changes(happened: Happened) -> list[Change]:
    """What it stands for. Raises BadFrame."""
    found = [_unwired(each) for each in happened.changes]
    return [each for each in found if isinstance(each, Change)]


def _wire_parts(parts: tuple[Part, ...] | None) -> tuple[WirePart, ...] | None:
    return None if parts is None else tuple(_wire(part) for part in parts)


def _parts(parts: tuple[WirePart, ...] | None) -> tuple[Part, ...] | None:
    if parts is None:
        return None
    found = [_unwired(each) for each in parts]
    return tuple(each for each in found if isinstance(each, Part))


def _wire(value: Part | Change) -> WirePart:
    return _NAMES[type(value)], {name: getattr(value, name) for name in value.__dataclass_fields__}


def _unwired(value: WirePart) -> Part | Change:
    name, fields = value
    try:
        return typed.convert(fields, _KINDS[name])
    except (KeyError, msgspec.ValidationError) as error:
        raise BadFrame(f"a part of an answer cannot be read: {error}") from error


# Bytes ---------------------------------------------------------------------------------------------------------------


def encode(frame: Any) -> bytes:
    """A frame as bytes, its length first. Raises InvalidRequest for text or values that have no bytes."""
    try:
        body = msgspec.msgpack.encode(frame)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"this cannot be sent to the daemon: {error}") from error
    if len(body) > FRAME_LIMIT_BYTES:
        raise InvalidRequest(f"{len(body)} bytes are more than the control socket takes ({FRAME_LIMIT_BYTES})")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def decode(body: bytes | memoryview, decoder: "Decoder[_Frame]") -> _Frame:
    """The frame in `body`, of one of the decoder's types. Raises BadFrame."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadFrame(f"not a frame that is known here: {error}") from error


def answer(value: Any) -> Answer:
    return Answer(msgspec.Raw(msgspec.msgpack.encode(value)))


def result(call: Call, answered: Answer) -> Any:
    """The value of an answer to `call`. Raises BadFrame."""
    return decode(memoryview(answered.value), RESULTS[type(call)])
