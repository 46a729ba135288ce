"""The supervisor: a pure pool that decides, and one thread that acts."""

from forgellm.supervisor.effects import Drained, Loaded, Unloaded
from forgellm.supervisor.embeddings import Embeddings
from forgellm.supervisor.generation import Completion, Generation, Token
from forgellm.supervisor.status import MemoryStatus, ModelStatus, PoolStatus, WorkerStatus
from forgellm.supervisor.supervisor import Supervisor

__all__ = [
    "Completion",
    "Drained",
    "Embeddings",
    "Generation",
    "Loaded",
    "MemoryStatus",
    "ModelStatus",
    "PoolStatus",
    "Supervisor",
    "Token",
    "Unloaded",
    "WorkerStatus",
]
