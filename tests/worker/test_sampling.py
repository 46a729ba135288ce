"""Choosing the next token: filters, penalties, and randomness that depends on (seed, position) alone."""

import math
from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forgellm.messages import Sampling
from forgellm.worker import sampling
from forgellm.worker.sampling import SeededSampler, keep_likely, position_key, processors, token_logprobs

pytestmark = pytest.mark.model

PROBABILITIES = (0.5, 0.25, 0.15, 0.07, 0.03)


def row(probabilities: tuple[float, ...] = PROBABILITIES) -> mx.array:
    return mx.array([[math.log(p) for p in probabilities]])


def kept(**filters: Any) -> list[int]:
    left = keep_likely(row(), Sampling(temperature=1.0, **filters)).tolist()[0]
    return [token for token, value in enumerate(left) if value > -math.inf]


def changed(logits: list[float], tokens: list[int], prompt_tokens: int, **penalties: Any) -> list[float]:
    out = mx.array([logits])
    for change in processors(Sampling(**penalties), prompt_tokens):
        out = change(mx.array(tokens), out)
    return [round(value, 4) for value in out.tolist()[0]]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.999}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.0}, [0]),
        ({"min_p": 0.4}, [0, 1]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 3, "top_p": 0.6}, [0, 1]),  # of the 0.9 that top_k left, 0.5 is not 60 %
        ({"top_p": 0.9, "min_p": 0.4}, [0, 1]),
    ],
)
def test_filters_keep_the_likely_tokens(filters: dict[str, Any], expected: list[int]) -> None:
    assert kept(**filters) == expected


def test_a_nucleus_larger_than_is_looked_at_is_cut_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_NUCLEUS", 3)
    assert kept(top_p=0.99) == [0, 1, 2]
    assert kept(top_p=0.6) == [0, 1]


def test_the_same_seed_and_position_choose_the_same_token_whatever_happens_between() -> None:
    """A global generator in between must not matter: that is what lets a seed survive batches and replays."""
    flat = mx.zeros((1, 1000))
    first = [SeededSampler(Sampling(temperature=1.0), 7)(flat).item()]
    mx.random.seed(99)
    mx.eval(mx.random.normal((5,)))
    sampler = SeededSampler(Sampling(temperature=1.0), 7)
    again = [sampler(flat).item() for _ in range(3)]
    assert first == again[:1]
    assert len(set(again)) == 3
    assert SeededSampler(Sampling(temperature=1.0), 7, position=2)(flat).item() == again[2]


def test_neighbouring_seeds_and_positions_have_different_keys() -> None:
    keys = {tuple(position_key(seed, position).tolist()) for seed in range(20) for position in range(20)}
    assert len(keys) == 400
    assert position_key(-1, 0).tolist() == position_key((1 << 64) - 1, 0).tolist()


def test_tokens_come_as_often_as_their_probability_says() -> None:
    sampler = SeededSampler(Sampling(temperature=1.0), 1)
    counts = Counter(mx.concatenate([sampler(row()) for _ in range(2000)]).tolist())
    for token, probability in enumerate(PROBABILITIES):
        assert counts[token] / 2000 == pytest.approx(probability, abs=0.04)


def test_a_low_temperature_is_nearly_greedy() -> None:
    sampler = SeededSampler(Sampling(temperature=0.05), 1)
    assert {sampler(row()).item() for _ in range(50)} == {0}


def test_the_repetition_penalty_counts_prompt_and_answer_and_knows_signs() -> None:
    assert changed([2.0, -2.0, 1.0], [0, 1, 1], 2, repetition_penalty=2.0) == [1.0, -4.0, 1.0]


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    assert changed([1.0, 1.0, 1.0], [0, 1, 1, 2], 1, presence_penalty=0.5) == [1.0, 0.5, 0.5]
    assert changed([1.0, 1.0, 1.0], [0, 1, 1, 2], 1, frequency_penalty=0.25) == [1.0, 0.5, 0.75]
    assert changed([1.0, 1.0, 1.0], [0, 1], 2, presence_penalty=0.5, frequency_penalty=0.5) == [1.0, 1.0, 1.0]


def test_logit_bias_is_added() -> None:
    assert changed([1.0, 1.0, 1.0], [0], 1, logit_bias=((2, 3.0), (0, -100.0))) == [-99.0, 1.0, 4.0]


def test_without_penalties_there_is_nothing_to_run_per_token() -> None:
    assert processors(Sampling(temperature=0.7, top_p=0.9), 3) == []


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_logprobs_are_those_of_the_row_likeliest_first(dtype: mx.Dtype) -> None:
    token, text, logprob, top = token_logprobs(row()[0].astype(dtype), 3, 2, str)
    assert (token, text) == (3, "3")
    assert logprob == pytest.approx(math.log(0.07), abs=0.02)
    assert [(t, s) for t, s, _ in top] == [(0, "0"), (1, "1")]
    assert np.exp(top[0][2]) == pytest.approx(0.5, abs=0.01)


def test_logprobs_of_the_chosen_token_only_and_of_more_than_there_are() -> None:
    assert token_logprobs(row()[0], 0, 0, str)[3] == ()
    assert [t for t, _, _ in token_logprobs(row()[0], 0, 20, str)[3]] == [0, 1, 2, 3, 4]


def test_the_last_bits_of_the_logits_do_not_choose_the_token() -> None:
    """They differ from batch to batch; a seeded answer must not, or it would go on differently in another life."""
    logprobs = mx.log(mx.softmax(3.0 * mx.random.normal((1, 49_152), key=mx.random.key(1)), axis=-1))
    noise = 1e-5 * (mx.arange(49_152) < 24_576)
    knobs = Sampling(temperature=1.0)
    for seed in range(100):
        chosen = SeededSampler(knobs, seed)(logprobs).item()
        assert SeededSampler(knobs, seed)(logprobs + noise).item() == chosen
