"""What a load call, or a request for a model that nobody loaded, comes to as an order."""

import pytest

from forgellm.config import LoadPolicy, ModelConfig, Settings
from forgellm.errors import InvalidRequest, ModelNotFound, ModelNotLoaded
from forgellm.supervisor.orders import demanded, load_order
from forgellm.supervisor.slots import LoadOrder


@pytest.mark.parametrize(
    ("server", "model", "preload", "is_loaded"),
    [
        ("on_demand", None, False, True),
        ("on_demand", "preloaded", False, False),
        ("preloaded", None, False, False),
        ("preloaded", "on_demand", False, True),
        ("preloaded", None, True, True),
    ],
)
def test_a_request_loads_what_its_policy_allows(
    server: LoadPolicy, model: LoadPolicy | None, preload: bool, is_loaded: bool
) -> None:
    config = ModelConfig(source="echo", load_policy=model, preload=preload, ttl_s=5.0)
    found = demanded(Settings(load_policy=server, models={"e": config}), 1 << 30, "e")
    assert isinstance(found, LoadOrder if is_loaded else ModelNotLoaded)
    if isinstance(found, LoadOrder):
        assert (found.source.name, found.ttl_s, found.on_demand) == ("e", 5.0, True)
    else:
        assert "load it first" in found.message


@pytest.mark.parametrize(
    ("server", "model", "key", "is_loaded"),
    [
        ("on_demand", "on_demand", "preloaded", False),
        ("preloaded", None, "on_demand", True),
        ("on_demand", "preloaded", "on_demand", False),
        ("preloaded", None, None, False),
    ],
)
def test_the_policy_of_a_key_takes_away_and_gives_what_no_model_refuses(
    server: LoadPolicy, model: LoadPolicy | None, key: LoadPolicy | None, is_loaded: bool
) -> None:
    settings = Settings(load_policy=server, models={"e": ModelConfig(source="echo", load_policy=model)})
    found = demanded(settings, 1 << 30, "e", key)
    assert isinstance(found, LoadOrder if is_loaded else ModelNotLoaded)
    if isinstance(found, ModelNotLoaded):
        assert ("your API key" in found.message) == (key == "preloaded")


def test_a_key_that_may_load_loads_nothing_by_its_path() -> None:
    assert isinstance(demanded(Settings(), 1 << 30, "/etc", "on_demand"), ModelNotLoaded)


@pytest.mark.parametrize("name", ["/etc", "./here", "~/models/x"])
def test_a_request_loads_nothing_by_its_path(name: str) -> None:
    found = demanded(Settings(), 1 << 30, name)
    assert isinstance(found, ModelNotLoaded)


def test_a_name_that_is_not_known_is_an_error_with_the_nearest_names() -> None:
    found = demanded(Settings(models={"tiny": ModelConfig(source="echo")}, aliases={"tidy": "tiny"}), 1 << 30, "tidi")
    assert isinstance(found, ModelNotFound)
    assert "tidy" in found.message


def test_a_load_by_an_alias_is_one_of_its_model() -> None:
    settings = Settings(models={"tiny": ModelConfig(source="echo")}, aliases={"small": "tiny"})
    order = load_order(settings, 1 << 30, "small", {})
    assert (order.source.name, order.aliases) == ("tiny", ("small",))


def test_a_load_needs_a_name_or_an_adapter() -> None:
    with pytest.raises(InvalidRequest, match="name a model"):
        load_order(Settings(), 1 << 30, None, {})
