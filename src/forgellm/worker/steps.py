"""mlx-lm's decode step without what nobody here reads: the log-probabilities of the whole vocabulary, for each token.

Must not choose tokens; samplers do. Copies of a step's logic live here alone: a test runs it beside mlx-lm's own.
"""

import importlib
from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch


class Steps(GenerationBatch):  # type: ignore[misc]  # mlx-lm has no types
    """GenerationBatch whose samplers get logits instead of log-probabilities, and whose responses hold none of these.

    A request that wants log-probabilities has a processor that notes them. Normalising every row costs 2 ms a token on
    a CPU (49,152 logits, where a step of 8 rows takes 200 ms), and a kernel for each row on a GPU.
    """

    _next_tokens: mx.array
    _next_logprobs: list[None]

    def _step(self) -> tuple[list[int], list[None]]:
        """One token for each sequence: (the tokens that were chosen a step ago, nothing about each of them).

        The step is computed while the caller works with what the one before gave."""
        inputs = self._current_tokens = self._next_tokens
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        contexts: list[mx.array] = []
        if any(self.logits_processors):
            logits = mx.concatenate([self._processed(row, inputs, logits, contexts) for row in range(len(self.uids))])
        samplers = [sampler or self.fallback_sampler for sampler in self.samplers or [None] * len(self.uids)]
        if all(sampler is samplers[0] for sampler in samplers):
            self._next_tokens = samplers[0](logits)
        else:
            chosen = [sampler(logits[row : row + 1]) for row, sampler in enumerate(samplers)]
            self._next_tokens = mx.concatenate(chosen)
        self._current_logprobs, self._next_logprobs = self._next_logprobs, [None] * len(self.uids)
        mx.async_eval(self._next_tokens, contexts)  # type: ignore[no-untyped-call]  # mlx's stub has no types here
        tokens: Any = inputs.tolist()
        for own, token in zip(self.tokens, tokens, strict=True):
            own.append(token)
        return tokens, self._current_logprobs

    def _processed(self, row: int, inputs: mx.array, logits: mx.array, contexts: list[mx.array]) -> Any:
        own = logits[row : row + 1]
        if processors := self.logits_processors[row]:
            context = self._token_context[row].update_and_fetch(inputs[row : row + 1])
            contexts.append(context)
            for processor in processors:
                own = processor(context, own)
        return own


def install() -> None:
    """Have every BatchGenerator of this process decode by Steps. There is no other way in: it makes its batches itself,
    by this name. mlx-lm is pinned to a minor release for such things."""
    module: Any = importlib.import_module("mlx_lm.generate")  # as an attribute of mlx_lm, `generate` is a function
    module.GenerationBatch = Steps
