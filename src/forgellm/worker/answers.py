"""Begins the answer of a request: what its text is taken apart into, and what keeps it to a grammar and a budget.

Runs no model. A thing that was asked for and cannot be kept to is an error here, before any work.
"""

from typing import Any

from forgellm.errors import InvalidRequest, Unsupported
from forgellm.messages import Request
from forgellm.worker.answer import Answer, CallReader, Thinking
from forgellm.worker.grammar import Calls, grammar
from forgellm.worker.guide import Guide, Guides
from forgellm.worker.sampling import Processor
from forgellm.worker.text import TextStream, TokenText
from forgellm.worker.thought_limit import ThoughtLimit
from forgellm.worker.tools import format_of
from forgellm.worker.turns import text_of


class Answers:
    """Begins the answers of one loaded model."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """`tokenizer`: mlx-lm's TokenizerWrapper. `vocab_size`: the width of the logits."""
        self._format = format_of(tokenizer)
        self._marks = (tokenizer.think_start, tokenizer.think_end) if tokenizer.has_thinking else None
        self.texts = TokenText(tokenizer)
        named = (tokenizer.think_start_tokens, tokenizer.think_end_tokens) if self._marks else ()
        if self._format.is_native:
            named += (tokenizer.tool_call_start_tokens, tokenizer.tool_call_end_tokens)
        self.texts.reveal(token for tokens in named for token in tokens)
        self._end_mark = list(map(int, tokenizer.think_end_tokens)) if self._marks else []
        self._has_template = bool(tokenizer.has_chat_template)
        self._guides = Guides(self.texts, vocab_size, sorted(map(int, tokenizer.eos_token_ids)))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What may be asked of this model, in words that clients know."""
        has = {
            "completion": True,
            "chat": self._has_template,
            "tools": self._has_template,
            "reasoning": self._has_template and self._marks is not None,
            "structured": self.texts.is_exact,
        }
        return tuple(name for name, is_so in has.items() if is_so)

    def begin(self, request: Request, prompt: list[int]) -> tuple[TextStream, list[Processor]]:
        """The answer's stream, after the tokens of `resume`, and what keeps it to what was asked for: the last changes
        of the logits, in this order, for nothing may undo them. Raises InvalidRequest."""
        thinking = self._thinking(request, prompt)
        wants_calls = request.tools is not None and request.tools.choice != "none"
        guide, is_guided = self._guide(request, thinking, wants_calls)
        goes_on = request.messages is None or request.continue_final
        decoder = self.texts.decoder(
            is_continuation=goes_on or guide is not None,  # what is shown is what the grammar saw
            shows_special=wants_calls and self._format.is_native and not is_guided,
        )
        stops = request.sampling.stop
        if request.tools is None or not wants_calls:
            calls = None
        else:
            one = request.tools.choice == "named" or not request.tools.parallel
            functions = request.tools.functions
            calls = CallReader(self._format, functions, request.request_id, guided=is_guided, one=one)
        if thinking == "never" and calls is None:
            stream = TextStream(decoder, stops)
        else:
            stream = Answer(decoder, stops, thinking=thinking, think_marks=self._marks or ("", ""), calls=calls)
        for token in request.resume:
            stream.push(token)  # the client has this
            if guide is not None:
                guide.take(token)
        stream.take_parts()
        changes: list[Processor] = [guide] if guide is not None else []
        if request.thinking_budget is not None and thinking != "never" and self._end_mark:
            alike = self.texts.decoder(is_continuation=True)  # a space at the beginning is no reasoning
            reader = Answer(alike, (), thinking=thinking, think_marks=self._marks or ("", ""))
            changes.append(ThoughtLimit(request.thinking_budget, reader, self._end_mark, len(prompt)))
        return stream, changes

    def _guide(self, request: Request, thinking: Thinking, wants_calls: bool) -> tuple[Guide | None, bool]:
        """(the guide if there is anything to keep to, whether it keeps calls to the form that can be streamed)."""
        tools, constraint = request.tools, request.constraint
        marks = self._marks or ("", "")
        if tools is None or not wants_calls:
            if constraint is None:
                return None, False
            return self._guides.start(grammar(constraint, None, thinking, marks), "constraint"), False
        must = tools.choice in ("required", "named")
        if not must and constraint is None and not (self._format.is_json and self.texts.is_exact):
            return None, False  # the model writes its own syntax, and mlx-lm reads it
        field = "tools" if must else "constraint" if constraint is not None else "tools"
        try:
            found = grammar(constraint, Calls(tools, self._format, with_schemas=True), thinking, marks)
            return self._guides.start(found, field), True
        except Unsupported:
            raise
        except InvalidRequest:
            if must:
                raise
        # A schema that cannot be kept to is a description all the same: then any arguments will do.
        found = grammar(constraint, Calls(tools, self._format, with_schemas=False), thinking, marks)
        return self._guides.start(found, field), True

    def _thinking(self, request: Request, prompt: list[int]) -> Thinking:
        """By how the prompt ends: a template may begin the reasoning itself, or close it at once."""
        if self._marks is None or request.messages is None or request.template is False or not self._has_template:
            return "never"
        if request.continue_final:  # in the middle of its text, or of a reasoning that it holds
            begun = text_of(request.messages[-1])
            return "is" if begun.rfind(self._marks[0]) > begun.rfind(self._marks[1]) else "never"
        tail = b"".join(map(self.texts.bytes_of, prompt[-16:])).decode("utf-8", "replace").rstrip()
        if tail.endswith(self._marks[0].rstrip()):
            return "is"
        return "never" if tail.endswith(self._marks[1].rstrip()) else "may"
