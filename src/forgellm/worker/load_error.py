"""The one sentence for a model that broke a library while it was loaded. Must not import mlx-lm or transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from forgellm.errors import ForgeLLMError, InsufficientMemory, ModelInvalid, UnsupportedFormat, UntrustedCode
from forgellm.messages import ModelSource


def model_error(source: ModelSource, error: Exception) -> ForgeLLMError:
    """The sentence for a model that broke a library: the library's words, and whose fault it is."""
    text = str(error) or type(error).__name__
    name = source.name
    if isinstance(error, MemoryError) or any(word in text for word in ("Insufficient Memory", "Unable to allocate")):
        return InsufficientMemory(f"{name} does not fit into memory: {text}")
    if "trust_remote_code" in text or "custom module" in text:
        return UntrustedCode(f"{name} asks to run its own code, which is never done; use a model without it")
    if isinstance(error, ValueError) and ("not supported" in text or "nsupported" in text):
        return UnsupportedFormat(f"{name} cannot be loaded: {text}")
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    elif not isinstance(error, ValueError | OSError | RuntimeError):
        text = f"{type(error).__name__}: {text}"
    return ModelInvalid(f"{name} cannot be loaded, its files are broken or incomplete: {text}")


@contextmanager
def load_edge(source: ModelSource) -> Iterator[None]:
    """Lets errors of errors.py out of the block, and nothing else: foreign files make libraries raise anything."""
    try:
        yield
    except ForgeLLMError:
        raise
    except Exception as error:
        raise model_error(source, error) from error


def check_finite(name: str, logits: Any) -> None:
    """Raise ModelInvalid if any of `logits` is NaN or infinite: broken weights load without an error."""
    if not bool(mx.isfinite(logits.astype(mx.float32)).all().item()):
        raise ModelInvalid(f"{name} computes NaN or infinity: its weights are damaged; fetch it again")
