"""The vectors that an embedding request gave, gathered from its Generation. Must not compute or change them."""

from dataclasses import dataclass
from typing import Self

from forgellm.errors import GenerationFailed
from forgellm.messages import Embedding, Usage
from forgellm.supervisor.generation import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """One vector for each input, in their order: little-endian float32. `vectors[i].tolist()` gives numbers,
    `vectors[i].tobytes()` what base64 wants. `usage.prompt_tokens` counts the tokens of all inputs."""

    vectors: "tuple[memoryview[float], ...]"  # quoted: subscriptable only since Python 3.14
    usage: Usage

    @classmethod
    def of(cls, generation: Generation) -> Self:
        """Wait for the end of a generation whose request had `inputs`.

        Raises the ForgeLLMError that ended it, GenerationFailed if it was aborted."""
        parts = [part for token in generation for part in token.parts or () if isinstance(part, Embedding)]
        if generation.finish_reason != "stop" or generation.usage is None:
            raise GenerationFailed("the request was aborted before its vectors were computed")
        parts.sort(key=lambda part: part.index)
        return cls(vectors=tuple(memoryview(part.vector).cast("f") for part in parts), usage=generation.usage)
