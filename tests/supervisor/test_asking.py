"""A Python call becomes exactly the request that it says, or an error that names the parameter."""

from typing import Any, cast

import pytest

from forgellm.errors import InvalidRequest
from forgellm.messages import Constraint, Request, Sampling, Timeouts, Tools
from forgellm.supervisor.asking import _OF_REQUEST, GenerateOptions, python_request

TOOLS = Tools(functions=({"type": "function", "function": {"name": "f"}},), choice="named", name="f", parallel=False)


def asked(**options: Any) -> Request:
    return python_request("m", "hi", cast("GenerateOptions", options))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("template", False),
        ("max_kv_size", 64),
        ("timeouts", Timeouts(total_s=2.5)),
        ("constraint", Constraint(kind="regex", text="a+")),
        ("tools", TOOLS),
        ("thinking_budget", 0),
        ("continue_final", True),
        ("keep_alive_s", -1.0),
    ],
)
def test_an_option_is_the_field_of_the_request(name, value):
    assert getattr(asked(**{name: value}), name) == value
    assert getattr(asked(**{name: None}), name) == getattr(asked(), name) != value


def test_a_mapping_stands_for_the_class():
    assert asked(constraint={"kind": "json_object"}).constraint == Constraint(kind="json_object")


def test_sampling_is_said_beside_them():
    request = asked(max_tokens=5, stop="END", logit_bias={7: -1.0}, constraint=Constraint(kind="json_object"))
    assert request.sampling == Sampling(max_tokens=5, stop=("END",), logit_bias=((7, -1.0),))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("template", "yes"),
        ("max_kv_size", 0),
        ("timeouts", 5),
        ("timeouts", Timeouts(total_s=-1)),
        ("constraint", "a+"),
        ("constraint", Constraint(kind=cast("Any", "xml"))),
        ("constraint", object()),
        ("tools", ({"type": "function"},)),
        ("tools", Tools(functions=(), choice=cast("Any", "always"))),
        ("keep_alive_s", float("inf")),
        ("keep_alive_s", 1e10),
        ("max_tokens", 0),
        ("temprature", 1.0),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(InvalidRequest) as caught:
        asked(**{name: value})
    assert caught.value.field == name
    assert name in caught.value.message


def test_the_types_of_the_options_know_each_parameter_that_there_is():
    assert set(GenerateOptions.__annotations__) == {*_OF_REQUEST, *Sampling.__dataclass_fields__}
