"""An answer that is begun in the last message is gone on with: what the prompt ends with, and what comes after it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_answer import MARKS
from test_mlx_engine import TEXTS, chat, run
from test_prompt import END, VOCAB, load, refused
from test_tools import TALK, TEMPLATE, WEATHER, parts

import tiny_model
from forgellm.errors import TemplateError
from forgellm.messages import Constraint, Reasoning, Request, Tools
from forgellm.worker.mlx_engine import MLXEngine
from forgellm.worker.prompt import PromptBuilder

pytestmark = pytest.mark.model

TRIMS = tiny_model.CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] | trim }}")
HIDES = tiny_model.CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'][:3] }}")
TWICE = tiny_model.CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] * 2 }}")


def begun(text: Any, request_id: str = "r", **knobs: Any) -> Request:
    request = chat(request_id, TEXTS[0], **knobs)
    last = {"role": "assistant", "content": text}
    return replace(request, messages=(*(request.messages or ()), last), continue_final=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PromptBuilder]:
    def build(template: str) -> PromptBuilder:
        folder = tiny_model.build(tmp_path_factory.mktemp("continue"), chat_template=template, layers=1)
        return PromptBuilder(load(folder), VOCAB, 512)

    return build


@pytest.fixture(scope="module")
def engine(load_engine: Callable[..., MLXEngine], tmp_path_factory: pytest.TempPathFactory) -> MLXEngine:
    marks = (*MARKS, "<tool_call>", "</tool_call>")
    folder = tmp_path_factory.mktemp("goes-on")
    return load_engine(
        tiny_model.build(folder, chat_template=TEMPLATE, extra_tokens=marks, context=2048), prefix_cache_bytes=0
    )


def shown(builder: PromptBuilder, request: Request) -> str:
    return str(builder._tokenizer.decode(builder.tokens(request)))


# The prompt ---


@pytest.mark.parametrize("template", [tiny_model.CHAT_TEMPLATE, TRIMS], ids=["plain", "trims"])
@pytest.mark.parametrize("text", ["Once upon", "a ", "\u4e16\u754c\n\n", "", f"the mark {END}", "\ufdd0 \ufdd1"])
def test_the_prompt_ends_with_the_text_that_is_gone_on_with(
    built: Callable[[str], PromptBuilder], template: str, text: str
) -> None:
    """To the last space, whatever the template trims; and its special tokens stay text."""
    builder = built(template)
    begins = f"<|im_start|>user\n{TEXTS[0]}<|im_end|>\n<|im_start|>assistant\n"
    assert shown(builder, begun(text)) == begins + text
    assert builder.tokens(begun(text)).count(2) == 1


def test_a_text_in_parts_is_one_text(built: Callable[[str], PromptBuilder]) -> None:
    builder = built(tiny_model.CHAT_TEMPLATE)
    pieces = [{"type": "text", "text": "Once "}, {"type": "text", "text": "upon"}]
    assert builder.tokens(begun(pieces)) == builder.tokens(begun("Once upon"))


def test_without_a_template_the_texts_are_lines_and_the_last_one_is_open(tiny_base_folder: Path) -> None:
    base = PromptBuilder(load(tiny_base_folder), VOCAB, 512)
    assert shown(base, begun("Once upon")) == f"{TEXTS[0]}\nOnce upon"


@pytest.mark.parametrize("template", [HIDES, TWICE], ids=["hides", "twice"])
def test_a_template_that_does_not_show_the_text_is_told_of(
    built: Callable[[str], PromptBuilder], template: str
) -> None:
    with pytest.raises(TemplateError, match="cannot be gone on with") as caught:
        built(template).tokens(begun("Once upon"))
    assert caught.value.field == "messages"


def test_only_a_text_of_the_assistants_is_gone_on_with(built: Callable[[str], PromptBuilder]) -> None:
    builder = built(tiny_model.CHAT_TEMPLATE)
    assert refused(builder, replace(chat("r"), continue_final=True)).field == "messages"
    calls = {"role": "assistant", "content": "so", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert refused(builder, replace(begun("x"), messages=(calls,))).field == "messages"


# The answer ---


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.9, "seed": 3}], ids=str)
def test_the_answer_is_the_continuation_in_any_life(engine: MLXEngine, knobs: dict[str, Any]) -> None:
    """Greedily, it is the rest of the answer of which the text is the beginning."""
    words = " the fox and the dog sleep in the sun"
    encode = engine._prompts._tokenizer.encode
    prompt = engine._prompts.tokens(begun("tell"))
    assert engine._prompts.tokens(begun("tell" + words))[len(prompt) :] == encode(words, add_special_tokens=False)
    request = begun("tell" + words, **knobs)
    whole = run(engine, request)
    raw = replace(request, messages=None, continue_final=False, prompt=tuple(engine._prompts.tokens(request)))
    assert whole.tokens("r") == run(engine, raw).tokens("r")
    usage = whole.last("r")[5]
    counted = run(engine, replace(request, count_only=True)).last("r")[5]
    assert usage is not None
    assert counted is not None
    assert counted.prompt_tokens == usage.prompt_tokens == len(prompt) + len(encode(words, add_special_tokens=False))
    for cut in (1, 9):
        before = whole.chunks["r"][:cut]
        after = run(engine, replace(request, resume=tuple(token for chunk in before for token in chunk[2])))
        assert "".join(chunk[1] for chunk in before) + after.text("r") == whole.text("r")


def test_a_text_that_is_begun_is_past_its_reasoning_unless_it_is_in_it(engine: MLXEngine) -> None:
    start = engine._prompts._tokenizer.convert_tokens_to_ids("<think>")
    eager = {"logit_bias": ((start, 60.0),), "max_tokens": 6}
    answers = run(engine, replace(begun("so", **eager), template_options={"thinking": "on"}))
    assert parts(answers) == []
    assert answers.text("r").startswith("<think>")
    for text, thought in (("<think>\nhm", True), ("<think>\nhm</think>so", False)):
        found = parts(run(engine, begun(text, max_tokens=12)))
        assert any(isinstance(part, Reasoning) for part in found) == thought
    held = run(engine, replace(begun("<think>\nhm", max_tokens=12), thinking_budget=2))
    assert held.tokens("r")[2] == engine._prompts._tokenizer.convert_tokens_to_ids("</think>")


def test_a_constraint_holds_for_the_continuation_and_calls_may_come_before_it(engine: MLXEngine) -> None:
    request = begun("so", temperature=1.5, seed=1, max_tokens=20)
    request = replace(request, messages=(*TALK, *(request.messages or ())))
    answers = run(engine, replace(request, constraint=Constraint(kind="regex", text=" [a-f]{4}")))
    assert len(answers.text("r")) == 5
    must = replace(request, tools=Tools(functions=(WEATHER,), choice="required", parallel=False))
    answers = run(engine, replace(must, sampling=replace(must.sampling, max_tokens=160)))
    assert answers.last("r")[4] == "tool_calls"
