"""Asks the hub which models it has. Goes to the network, so only the command line calls it; downloads nothing."""

from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, errors

from forgellm.errors import HubUnavailable

LIMIT = 20


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository of the hub. `downloads`: in the last 30 days. `is_mlx`: its owner says that it was made for MLX."""

    id: str
    downloads: int
    likes: int
    is_mlx: bool
    is_gated: bool


def search(query: str, limit: int = LIMIT) -> list[Remote]:
    """Models in safetensors that answer to `query`, the most fetched first. Raises HubUnavailable."""
    try:
        found = list(
            HfApi(library_name="forgellm").list_models(
                search=query,
                filter="safetensors",
                sort="downloads",
                limit=limit,
                expand=["downloads", "likes", "tags", "gated"],
            )
        )
    except (httpx2.HTTPError, errors.HfHubHTTPError, OSError, ValueError) as error:
        raise HubUnavailable(f"the hub does not answer ({str(error)[:200] or type(error).__name__})") from error
    return [
        Remote(each.id, each.downloads or 0, each.likes or 0, "mlx" in (each.tags or ()), bool(each.gated))
        for each in found
    ]
