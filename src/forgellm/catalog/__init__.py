"""From a name to what can be loaded: config entries, folders, the Hugging Face cache, GGUF files, adapters, demo model.

Must not import mlx, mlx-lm, transformers or numpy: the supervisor asks here before a worker exists.
"""

from forgellm.catalog.downloads import Downloads, Job
from forgellm.catalog.entries import CatalogEntry, entries
from forgellm.catalog.removal import Removed
from forgellm.catalog.resolve import adapter_base, is_path, resolve

__all__ = ["CatalogEntry", "Downloads", "Job", "Removed", "adapter_base", "entries", "is_path", "resolve"]
