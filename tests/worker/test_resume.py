"""A request that goes on in another life gives what the first life would have given: the engine's half of replay."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_mlx_engine import TEXTS, chat, run

from forgellm.messages import Request
from forgellm.worker.mlx_engine import MLXEngine

pytestmark = pytest.mark.model

KNOBS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 11},
    {"temperature": 1.3, "top_p": 0.9, "top_k": 50, "seed": 12},
    {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    {"temperature": 1.0, "seed": 13, "logprobs": 2},
]


@pytest.fixture(scope="module", params=[0, 1 << 24], ids=["no prefix cache", "prefix cache"])
def engine(request: pytest.FixtureRequest, load_engine: Callable[..., MLXEngine], tiny_folder: Path) -> MLXEngine:
    return load_engine(tiny_folder, prefix_cache_bytes=request.param)


def parts(engine: MLXEngine, request: Request, cut: int) -> tuple[str, list[int]]:
    """(text, tokens) of a request that is run anew after `cut` tokens, in front of two others."""
    whole = run(engine, request)
    before = whole.chunks[request.request_id][:cut]
    resumed = replace(request, resume=tuple(token for chunk in before for token in chunk[2]))
    after = run(engine, resumed, chat("x", TEXTS[1]), chat("y", TEXTS[2]))
    rest = after.chunks[request.request_id]
    assert rest[-1][4] == whole.last(request.request_id)[4]
    assert rest[-1][5] is not None
    assert rest[-1][5].completion_tokens == len(whole.tokens(request.request_id))
    return "".join(chunk[1] for chunk in before + rest), [token for chunk in before + rest for token in chunk[2]]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("cut", [1, 7, 23])
def test_an_answer_cut_anywhere_goes_on_as_if_it_had_not_been(
    engine: MLXEngine, knobs: dict[str, Any], cut: int
) -> None:
    request = chat("r", TEXTS[3], **knobs)
    whole = run(engine, request)
    assert parts(engine, request, cut) == (whole.text("r"), whole.tokens("r"))


def test_a_stop_string_that_began_in_the_life_before_still_stops(engine: MLXEngine) -> None:
    """The held-back text is rebuilt from the tokens; nothing of the stop leaks, nothing is shown twice."""
    text = run(engine, chat("r", TEXTS[4])).text("r")
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    request = chat("r", TEXTS[4], stop=(stop,))
    whole = run(engine, request)
    assert whole.last("r")[4] == "stop"
    for cut in range(1, len(whole.chunks["r"])):
        assert parts(engine, request, cut) == (text[: text.index(stop)], whole.tokens("r"))
