"""Lets only those tokens through that a grammar allows next: llguidance's masks on the logits of one sequence.

Builds no grammar, and chooses no token.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from forgellm.errors import GenerationFailed, InvalidRequest, Unsupported
from forgellm.worker.text import TokenText

# A quarter of llguidance's own: compiling takes half a second at most, a mask some milliseconds (measured).
_LIMITS = LLParserLimits(
    initial_lexer_fuel=300_000, max_lexer_states=50_000, max_grammar_size=100_000, verbose_errors=False
)


class Guides:
    """Makes the guides of one loaded model. llguidance's view of the vocabulary is built when the first is wanted."""

    def __init__(self, texts: TokenText, vocab_size: int, eos: list[int]) -> None:
        """`vocab_size`: the width of the logits, which may be more than the tokenizer knows."""
        self._texts = texts
        self._vocab_size = vocab_size
        self._eos = eos
        self._tokenizer: LLTokenizer | None = None

    def start(self, grammar: str, field: str) -> "Guide":
        """A guide at the start of `grammar`. Raises InvalidRequest that names `field` and what is wrong with it."""
        if not self._texts.is_exact:
            raise Unsupported(
                f"{field}: the tokens of this model's tokenizer are not exact bytes, so no grammar can be kept to",
                field=field,
            )
        if self._tokenizer is None:
            vocabulary = _Vocabulary(self._texts, self._vocab_size, self._eos)
            self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=self._eos)
            vocabulary.greedy = self._tokenizer.greedy_tokenize
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        matcher.compute_bitmask()  # a dead end at the very start is an error here, and not in the middle of a step
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            what = matcher.get_error().strip() or matcher.stop_reason()
            raise InvalidRequest(f"{field} cannot be kept to: {what[:500]}", field=field)
        return Guide(matcher, self._vocab_size)


class _Vocabulary:
    """What TokenizerWrapper asks for. Tokens of the logits that nothing stands for are empty, so never allowed."""

    def __init__(self, texts: TokenText, vocab_size: int, eos: list[int]) -> None:
        self.eos_token_id = eos[0]
        self.bos_token_id = None
        self.special_token_ids = sorted({*texts.hidden, *eos})
        special = set(self.special_token_ids)
        self.greedy: Callable[[str], list[int]] = lambda _: []  # until there is a trie of the tokens
        self._texts = texts
        self.tokens = [
            texts.text_of(token).encode("utf-8", "replace") if token in special else texts.bytes_of(token)
            for token in range(vocab_size)
        ]

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text that the grammar forces, as the model's tokenizer writes it. Where that adds something to
        the text (SentencePiece: a space before it), the longest tokens that fit."""
        found = self._texts.tokens_of(text.decode("utf-8"))
        return found if b"".join(map(self._texts.bytes_of, found)) == text else self.greedy(text.decode("utf-8"))


class Guide:
    """The state of one answer in its grammar. A logits processor: (all tokens so far, logits) -> logits."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._has_begun = False

    def take(self, token: int) -> None:
        """The answer goes on with `token`. Raises GenerationFailed if the grammar has no place for it."""
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return  # the end was reached; what a batch computes beyond it is thrown away
        if not self._matcher.consume_token(token):
            raise GenerationFailed(f"the grammar cannot go on: {self._matcher.get_error().strip()[:500]}")

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """-inf for all that may not come next. Called once for each token of the answer, in order."""
        last: Any = tokens[-1]
        # The model computes on while this thread waits for the last token, and for the mask.
        mx.async_eval(last)  # type: ignore[no-untyped-call]  # mlx's stub has no types here
        mx.async_eval(logits)  # type: ignore[no-untyped-call]  # the same
        if self._has_begun:
            self.take(int(last.item()))
        self._has_begun = True
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise GenerationFailed(f"the grammar cannot go on: {self._matcher.get_error().strip()[:500]}")
        allowed = mx.array(np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_))
        return mx.where(allowed, logits, -mx.inf)
