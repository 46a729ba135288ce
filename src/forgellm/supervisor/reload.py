"""What changed settings would do to a running pool: which models come, change and go, and what needs a restart. Pure.

Reads no file and applies nothing; loads and the pool do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from forgellm.config import ModelConfig, Settings, TakesEffect
from forgellm.errors import ConfigError
from forgellm.supervisor.slots import LoadOrder


def takes_effect(struct: type[msgspec.Struct] = Settings) -> dict[str, TakesEffect]:
    """When each field counts. Raises ConfigError for one that is not marked, or twice: a mistake in the code."""
    found: dict[str, TakesEffect] = {}
    for setting in msgspec.structs.fields(struct):
        marks = [mark for mark in getattr(setting.type, "__metadata__", ()) if isinstance(mark, TakesEffect)]
        if len(marks) != 1:
            raise ConfigError(f"the setting {setting.name} must be marked AT_ONCE, IN_LOADS or AT_RESTART")
        found[setting.name] = marks[0]
    return found


IN_LOADS = frozenset(name for name, when in takes_effect().items() if when is TakesEffect.IN_LOADS)
"""Settings that are part of every load: those that concern the engine, a loaded model takes over by being replaced."""

AT_ONCE = frozenset(name for name, when in takes_effect().items() if when is not TakesEffect.AT_RESTART)
"""Settings that a running pool takes over; all others wait for the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadPlan:
    """What a reload does, or would do.

    `added`, `changed` (with the fields), `removed`: models of the settings. Of the loaded ones, `replaced` get new
    workers that take their streams over, and `unloaded` finish what they have and go. `loaded`: added ones to preload.
    `at_once` and `after_restart` are settings whose values differ."""

    added: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    at_once: tuple[str, ...] = ()
    after_restart: tuple[str, ...] = ()


def effective(old: Settings, new: Settings) -> Settings:
    """`new`, with what needs a restart as it is in `old`."""
    return msgspec.structs.replace(old, **{name: getattr(new, name) for name in AT_ONCE})


def touched(old: Settings, new: Settings, loaded: Mapping[str, LoadOrder]) -> tuple[str, ...]:
    """The loaded models whose orders the new settings may change; no other needs to be looked at."""
    if IN_LOADS & set(_differing(old, new)):
        return tuple(name for name in loaded if not _is_removed(name, old, new))
    return tuple(name for name in loaded if name in old.models and name in _changed(old, new))


def diff(old: Settings, new: Settings, loaded: Mapping[str, LoadOrder], orders: Mapping[str, LoadOrder]) -> ReloadPlan:
    """The plan. `loaded` are the orders of what is loaded now, `orders` those of touched() under the new settings."""
    added = tuple(name for name in new.models if name not in old.models)
    settings = [name for name in _differing(old, new) if name != "models"]
    return ReloadPlan(
        added=added,
        changed=_changed(old, new),
        removed=tuple(name for name in old.models if name not in new.models),
        loaded=tuple(name for name in added if new.models[name].preload and name not in loaded),
        replaced=tuple(name for name, order in orders.items() if not order.same_model(loaded[name])),
        unloaded=tuple(name for name in loaded if _is_removed(name, old, new)),
        at_once=tuple(name for name in settings if name in AT_ONCE),
        after_restart=tuple(name for name in settings if name not in AT_ONCE),
    )


def _is_removed(name: str, old: Settings, new: Settings) -> bool:
    return name in old.models and name not in new.models


def _changed(old: Settings, new: Settings) -> dict[str, tuple[str, ...]]:
    both = [name for name in old.models if name in new.models]
    found = {name: _differing(old.models[name], new.models[name]) for name in both}
    return {name: fields for name, fields in found.items() if fields}


def _differing(old: Settings | ModelConfig, new: Settings | ModelConfig) -> tuple[str, ...]:
    return tuple(name for name in old.__struct_fields__ if getattr(old, name) != getattr(new, name))
