"""The bodies of POST /v1/completions and /v1/embeddings, which take texts or token ids. Calls nothing."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from forgellm.api.schemas.body import Body, Name, honoured, invalid, no_effect, only, refused
from forgellm.api.schemas.openai import NO_ACCOUNT, Sampled, new_ids
from forgellm.errors import Unsupported
from forgellm.messages import Request, TokenId, Tokens, TopLogprobs

MAX_ANSWERS = 128  # of one request: its prompts times its choices
MAX_INPUTS = 2048

Ids = tuple[TokenId, ...]
Texts = str | tuple[str | TokenId | Ids, ...]
"""A text, several, a list of token ids, or several of those."""


def texts_of(field: str, given: Texts) -> tuple[str | Ids, ...]:
    """Each text or list of token ids. Raises InvalidRequest if there are none, or of several kinds."""
    if isinstance(given, str):
        return (given,)
    kinds = {type(each) for each in given}
    if len(kinds) != 1:
        raise invalid(field, "must be a text, texts, token ids, or lists of token ids" if kinds else "is an empty list")
    if kinds == {int}:
        return (tuple(each for each in given if isinstance(each, int)),)
    return tuple(each for each in given if not isinstance(each, int))


class CompletionBody(Sampled, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Annotated[Texts, honoured("what is continued: a text, token ids, or a list of either; no chat template")]
    max_tokens: Annotated[Tokens, honoured("longest answer, each")] = 16
    echo: Annotated[bool, honoured("each answer begins with its prompt; not with token ids, nor with `logprobs`")] = (
        False
    )
    logprobs: Annotated[
        TopLogprobs | None, honoured("the log probability of each token, and of so many of the likeliest")
    ] = None
    best_of: Annotated[int | None, only(1, "every choice that is made is returned; ask for `n`")] = None
    suffix: Annotated[Any, refused("a model here goes on after a prompt; it cannot fill in before a suffix")] = None

    def __post_init__(self) -> None:
        self.check()
        prompts = self.prompts
        if len(prompts) * self.n > MAX_ANSWERS:
            raise invalid("prompt", f"times `n` makes more than {MAX_ANSWERS} answers")
        if self.echo and not all(isinstance(prompt, str) for prompt in prompts):
            raise Unsupported("`echo` of token ids is not possible; send the prompt as text", field="echo")
        if self.echo and self.logprobs is not None:
            raise Unsupported("`echo` with `logprobs`: those of a prompt are not computed", field="echo")

    @property
    def prompts(self) -> tuple[str | Ids, ...]:
        """Each prompt; its `n` choices come one after the other."""
        return texts_of("prompt", self.prompt)

    def echoed(self, index: int) -> str:
        """What the text of answer `index` begins with."""
        prompt = self.prompts[index // self.n]
        return prompt if self.echo and isinstance(prompt, str) else ""

    def to_requests(self) -> list[Request]:
        """One request a prompt and choice. Their ids are born here."""
        prompts, constraint = self.prompts, self.constraint()
        wanted = [(prompt, choice) for prompt in prompts for choice in range(self.n)]
        return [
            Request(
                request_id=request_id,
                model=self.model,
                prompt=prompt,
                constraint=constraint,
                sampling=self.sampling(self.max_tokens, self.logprobs, choice),
            )
            for (prompt, choice), request_id in zip(wanted, new_ids("cmpl", len(wanted)), strict=True)
        ]


class EmbeddingBody(Body, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    model: Annotated[Name, honoured("which model embeds")]
    input: Annotated[Texts, honoured("a text, token ids, or a list of either; a vector for each")]
    encoding_format: Annotated[
        Literal["float", "base64"], honoured("`base64`: the vector as little-endian float32 bytes")
    ] = "float"
    user: Annotated[str | None, no_effect(NO_ACCOUNT)] = None
    dimensions: Annotated[Any, refused("a vector is as long as the model makes it")] = None

    def __post_init__(self) -> None:
        self._inputs()

    def _inputs(self) -> Sequence[str | Ids]:
        inputs = texts_of("input", self.input)
        if len(inputs) > MAX_INPUTS:
            raise invalid("input", f"has more than {MAX_INPUTS} texts")
        return inputs

    def to_requests(self) -> list[Request]:
        """One request for all inputs. Its id is born here."""
        (request_id,) = new_ids("embd", 1)
        return [Request(request_id=request_id, model=self.model, inputs=tuple(self._inputs()))]
