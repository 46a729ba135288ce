"""ForgeLLM: MLX language models, each in a supervised process of its own.

from forgellm import Supervisor
with Supervisor() as pool:
    pool.load("smollm2")
    for token in pool.generate("smollm2", "What is the capital of France?"):
        print(token, end="", flush=True)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgellm.config import ModelConfig, Settings
    from forgellm.control import ModelManager
    from forgellm.supervisor import Completion, Embeddings, Generation, Supervisor, Token

__all__ = ["Completion", "Embeddings", "Generation", "ModelConfig", "ModelManager", "Settings", "Supervisor", "Token"]

_HOME = {"ModelConfig": "forgellm.config", "ModelManager": "forgellm.control", "Settings": "forgellm.config"}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: a worker imports this package too, and must not hold a supervisor."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - see above

    return getattr(import_module(_HOME.get(name, "forgellm.supervisor")), name)
