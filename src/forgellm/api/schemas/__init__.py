"""Request bodies, one module a dialect: the only validation there is. Turns bytes into values; calls nothing."""

from forgellm.api.schemas.body import Body, Param, honoured, invalid, no_effect, only, params_of, refused
from forgellm.api.schemas.model import GenerateBody, LoadBody, PlanBody, Turn, UnloadBody

__all__ = [
    "Body",
    "GenerateBody",
    "LoadBody",
    "Param",
    "PlanBody",
    "Turn",
    "UnloadBody",
    "honoured",
    "invalid",
    "no_effect",
    "only",
    "params_of",
    "refused",
]
