"""`options` of Ollama's chat and generate: how an answer is sampled. Calls nothing."""

from typing import Annotated, Any

from msgspec import Meta

from forgellm.api.schemas.body import Body, honoured, invalid, no_effect, only, refused
from forgellm.messages import (
    Penalty,
    RepetitionPenalty,
    Sampling,
    Share,
    StopString,
    StopStrings,
    Temperature,
    Tokens,
    TopK,
)

UNLIMITED = 2**31 - 1  # tokens; the worker cuts an answer to what the context length leaves room for
NEVER_CUT = "what does not fit the context is refused, never cut"
_LOADED = "how a model is held in memory is for the server's settings and the load to say"

Predict = Annotated[int, Meta(ge=-2, le=UNLIMITED)]
AnySeed = Annotated[int, Meta(ge=-1, le=2**63 - 1)]


class Options(Body, frozen=True, kw_only=True):
    """`options`: how the answer is sampled, with Ollama's defaults."""

    num_predict: Annotated[Predict, honoured("longest answer; -1 and -2: what the context leaves room for")] = -1
    num_ctx: Annotated[
        Tokens | None,
        honoured("longest prompt and answer together; a model that is loaded with less keeps to its own"),
    ] = None
    seed: Annotated[AnySeed, honoured("the same seed gives the same text, alone or in a batch; -1: a new one")] = -1
    stop: Annotated[StopString | StopStrings, honoured("the text ends before it; it may span tokens")] = ()
    temperature: Annotated[Temperature, honoured("0 is greedy")] = 0.8
    top_k: Annotated[TopK, honoured("the so many likeliest tokens; 0 is off")] = 40
    top_p: Annotated[Share, honoured("the likeliest tokens that together have this probability; 1 is off")] = 0.9
    min_p: Annotated[Share, honoured("tokens at least so likely as this share of the likeliest one; 0 is off")] = 0.0
    repeat_penalty: Annotated[RepetitionPenalty, honoured("divides the logit of tokens that came; 1 is off")] = 1.1
    presence_penalty: Annotated[Penalty, honoured("taken from the logit of every token of the text so far")] = 0.0
    frequency_penalty: Annotated[Penalty, honoured("the same, times how often it came")] = 0.0
    repeat_last_n: Annotated[int | None, only(-1, "`repeat_penalty` looks at all of the prompt and the answer")] = None
    penalize_newline: Annotated[bool | None, only(True, "a line break is a token like any other")] = None
    num_keep: Annotated[int | None, no_effect(f"{NEVER_CUT}, so there is nothing to keep")] = None
    mirostat: Annotated[int | None, only(0, "there is no such sampler here; use `min_p`")] = None
    mirostat_tau: Annotated[float | None, no_effect("it belongs to `mirostat`, which is off")] = None
    mirostat_eta: Annotated[float | None, no_effect("it belongs to `mirostat`, which is off")] = None
    tfs_z: Annotated[float | None, only(1.0, "there is no such sampler here; use `min_p`")] = None
    typical_p: Annotated[float | None, only(1.0, "there is no such sampler here; use `min_p`")] = None
    num_batch: Annotated[Any, refused(_LOADED)] = None
    num_gpu: Annotated[Any, refused(_LOADED)] = None
    main_gpu: Annotated[Any, refused(_LOADED)] = None
    num_thread: Annotated[Any, refused(_LOADED)] = None
    numa: Annotated[Any, refused(_LOADED)] = None
    use_mmap: Annotated[Any, refused(_LOADED)] = None
    use_mlock: Annotated[Any, refused(_LOADED)] = None
    low_vram: Annotated[Any, refused(_LOADED)] = None
    f16_kv: Annotated[Any, refused(_LOADED)] = None
    vocab_only: Annotated[Any, refused(_LOADED)] = None
    logits_all: Annotated[Any, refused(_LOADED)] = None
    embedding_only: Annotated[Any, refused(_LOADED)] = None

    def __post_init__(self) -> None:
        if self.num_predict == 0:
            raise invalid("num_predict", "is 0; give at least 1, or -1 for no limit")

    def sampling(self, logprobs: int | None) -> Sampling:
        """How the answer is sampled."""
        return Sampling(
            max_tokens=UNLIMITED if self.num_predict < 0 else self.num_predict,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=(self.stop,) if isinstance(self.stop, str) else self.stop,
            seed=None if self.seed < 0 else self.seed,
            logprobs=logprobs,
        )
