"""Asks the hub which models it has. Goes to the network, so only the command line calls it; downloads nothing."""

from dataclasses import dataclass

import httpx2
import msgspec
from huggingface_hub import constants, get_token

from forgellm import typed
from forgellm.errors import HubUnavailable

LIMIT = 20
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository of the hub. `downloads`: in the last 30 days. `is_mlx`: its owner says that it was made for MLX."""

    id: str
    downloads: int
    likes: int
    is_mlx: bool
    is_gated: bool


class _Listed(msgspec.Struct, frozen=True):
    """A repository as the hub lists it."""

    id: str
    downloads: int | None = None
    likes: int | None = None
    tags: tuple[str, ...] | None = None
    gated: bool | str | None = None


def search(query: str, limit: int = LIMIT) -> list[Remote]:
    """Models in safetensors that answer to `query`, the most fetched first. Raises HubUnavailable.

    Asked once: the client's own list_models() tries six times in 25 s, and prints each."""
    url = f"{constants.ENDPOINT}/api/models"
    params: dict[str, str | int | list[str]] = {"search": query, "filter": "safetensors", "sort": "downloads"}
    params |= {"limit": limit, "expand": ["downloads", "likes", "tags", "gated"]}
    token = get_token()
    headers = {"User-Agent": "forgellm", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        answer = httpx2.get(url, params=params, headers=headers, timeout=TIMEOUT_S, follow_redirects=True)
        answer.raise_for_status()
        found = typed.decode(answer.content, list[_Listed])[:limit]
    except (httpx2.HTTPError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HubUnavailable(
            f"the hub at {constants.ENDPOINT} does not answer ({str(error)[:200] or type(error).__name__}): check the "
            "network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from error
    return [
        Remote(each.id, each.downloads or 0, each.likes or 0, "mlx" in (each.tags or ()), bool(each.gated))
        for each in found
    ]
