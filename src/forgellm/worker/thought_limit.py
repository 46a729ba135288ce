"""Ends the reasoning of an answer when its budget is spent: from then on, only the end mark's tokens are let through.

Builds no grammar, and reads no token before the budget can be spent.
"""

from typing import Any

import mlx.core as mx

from forgellm.worker.answer import Answer

MAX_LATE_TOKENS = 3
"""A code point that was begun is finished first: it has at most 4 bytes."""


class ThoughtLimit:
    """The state of one answer against its budget. A logits processor: (all tokens so far, logits) -> logits.

    What is reasoning is the reader's to say, which takes the answer apart as the one that shows it does. Where a
    grammar's mask leaves no place for the mark (in the middle of a code point), the grammar goes first.
    """

    def __init__(self, budget: int, reader: Answer, mark: list[int], prompt_tokens: int) -> None:
        """`budget`: tokens between the marks. `mark`: how the tokenizer writes the end mark, one token at least."""
        self._budget = budget
        self._reader = reader
        self._mark = mark
        self._next = prompt_tokens  # the first token that was not read yet
        self._end_of_budget = prompt_tokens + budget
        self._spent = 0
        self._written = 0  # tokens of the mark, in this row
        self._is_over = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """-inf for all but the mark's next token, once the budget is spent. Call it after a grammar's mask."""
        if self._is_over or tokens.size < self._end_of_budget:
            return logits
        unread: Any = tokens[self._next :].tolist()
        for token in unread:
            self._take(token)
        self._next = tokens.size
        if self._is_over or not self._is_spent:
            return logits
        wanted = self._mark[self._written]
        only = mx.where(mx.arange(logits.shape[-1]) == wanted, logits, -mx.inf)
        return mx.where(logits[..., wanted : wanted + 1] > -mx.inf, only, logits)

    @property
    def _is_spent(self) -> bool:
        if self._reader.thinking != "is" or self._spent < self._budget:
            return False
        return self._reader.is_whole or self._spent >= self._budget + MAX_LATE_TOKENS

    def _take(self, token: int) -> None:
        if self._is_over:
            return
        was_thinking, was_spent = self._reader.thinking == "is", self._is_spent
        self._reader.push(token)
        self._reader.take_parts()
        self._spent += was_thinking
        self._written = self._written + 1 if was_spent and token == self._mark[self._written] else 0
        # The second is for a tokenizer whose mark does not read as it is written: once is enough.
        self._is_over = self._reader.thinking == "never" or self._written == len(self._mark)
