"""A budget of reasoning over HTTP, with a real engine: through the official clients, and over a worker's death."""

import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tokenizers import Tokenizer

import tiny_model
from daemons import Daemon, daemon

pytestmark = [pytest.mark.e2e, pytest.mark.model]

TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking -%}
<think>
{% endif -%}"""
ASKED: Any = {"model": "thinker", "messages": [{"role": "user", "content": "tell me a story about a small model"}]}
BUDGET = 1024  # Anthropic's least


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("thinks")
    model = tiny_model.build(
        folder / "model", chat_template=TEMPLATE, extra_tokens=("<think>", "</think>"), context=2048
    )
    _never_say(model, tiny_model.EOS, "</think>")
    with daemon(folder, f'[models.thinker]\nsource = "{model}"\n') as found:
        yield found


def _never_say(model: Path, *tokens: str) -> None:
    """A row of zeros gives its token the logit 0, and of hundreds of random ones some are always more."""
    names = Tokenizer.from_file(str(model / "tokenizer.json"))
    path = str(model / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    for token in tokens:
        weights["model.embed_tokens.weight"][names.token_to_id(token)] = 0.0
    mx.eval(weights)  # before its file is written over
    mx.save_safetensors(path, weights, metadata={"format": "mlx"})


def test_anthropic_thinking_ends_at_its_budget_and_is_the_same_if_its_worker_dies_in_it(served: Daemon) -> None:
    anthropic = importlib.import_module("anthropic")
    asked = {
        **ASKED,
        "max_tokens": BUDGET + 40,
        "thinking": {"type": "enabled", "budget_tokens": BUDGET},
        "extra_body": {"temperature": 0},
    }
    with anthropic.Anthropic(base_url=served.url, api_key="any", max_retries=0, timeout=60) as client:
        whole = client.messages.create(**asked)
        before = served.http.get("/api/model/status", params={"model": "thinker"}).json()
        pieces = 0
        with client.messages.stream(**asked) as stream:
            for event in stream:
                pieces += event.type == "thinking"
                if event.type == "thinking" and pieces == 200:
                    os.kill(before["pid"], signal.SIGKILL)
            again = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert whole.content[1].text
    assert [block.to_dict() for block in again.content] == [block.to_dict() for block in whole.content]
    assert again.usage.output_tokens == whole.usage.output_tokens == BUDGET + 40
    after = served.http.get("/api/model/status", params={"model": "thinker"}).json()
    assert after["life"] != before["life"]


@pytest.mark.parametrize("budget", [0, 7])
def test_openai_reasoning_ends_at_its_budget_in_vllms_name(served: Daemon, budget: int) -> None:
    openai = importlib.import_module("openai")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=60) as client:

        def ask(**more: Any) -> Any:
            answer = client.chat.completions.create(**ASKED, max_tokens=30, temperature=0, extra_body=more)
            return answer.choices[0].message

        free, held = ask(), ask(thinking_token_budget=budget)
        assert not free.content, "left to itself, this model never comes back"
        assert held.content
        thought = getattr(held, "reasoning_content", None) or ""
        assert free.reasoning_content.startswith(thought)
        assert bool(thought) == bool(budget)
        streamed = client.chat.completions.create(
            **ASKED, max_tokens=30, temperature=0, stream=True, extra_body={"thinking_token_budget": budget}
        )
        deltas = [chunk.choices[0].delta for chunk in streamed if chunk.choices]
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
        assert "".join(delta.content or "" for delta in deltas) == held.content
