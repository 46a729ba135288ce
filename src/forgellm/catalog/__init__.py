"""From a name to what can be loaded: config entries, folders, the Hugging Face cache, GGUF files, adapters, demo model.

Must not import mlx, mlx-lm, transformers or numpy: the supervisor asks here before a worker exists.
"""

from forgellm.catalog.entries import CatalogEntry, entries
from forgellm.catalog.resolve import adapter_base, resolve

__all__ = ["CatalogEntry", "adapter_base", "entries", "resolve"]
