"""The encoders of the BERT family (BERT, RoBERTa, XLM-RoBERTa): token ids in, one state for each token out.

Must not know texts, files or requests. Architecture: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, with layer
norms after each addition.
"""

import re
from collections.abc import Generator, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from forgellm.worker import cpu_math

_OURS = re.compile(r"(?:^|\.)((?:embeddings|encoder\.layer)\..*)")  # after "bert." or the like

# Names of tensors as transformers has them, and ours; in this order, for some are parts of others.
_NAMES = (
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "types."),
    ("embeddings.LayerNorm.", "norm."),
    ("encoder.layer.", "layers."),
    (".attention.self.", "."),
    (".attention.output.dense.", ".mixed."),
    (".attention.output.LayerNorm.", ".mixed_norm."),
    (".intermediate.dense.", ".up."),
    (".output.dense.", ".down."),
    (".output.LayerNorm.", ".norm."),
    ("orm.gamma", "orm.weight"),
    ("orm.beta", "orm.bias"),
)


class Layer(nn.Module):  # type: ignore[misc]  # mlx is not type-checked
    """Attention of all tokens to all, then an MLP; each is added to what it was given, and normed."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        eps = config.get("layer_norm_eps", 1e-12)
        self.heads = config["num_attention_heads"]
        self.act = nn.relu if config.get("hidden_act") == "relu" else cpu_math.gelu
        self.query, self.key, self.value, self.mixed = (nn.Linear(hidden, hidden) for _ in range(4))
        self.mixed_norm = nn.LayerNorm(hidden, eps)
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps)

    def __call__(self, states: mx.array, mask: mx.array) -> mx.array:
        """`states` (batch, tokens, hidden); `mask` (batch, 1, 1, tokens), true where there is a token."""
        batch, length, hidden = states.shape
        queries, keys, values = (
            part(states).reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
            for part in (self.query, self.key, self.value)
        )
        seen = cpu_math.attention(queries, keys, values, scale=(hidden // self.heads) ** -0.5, mask=mask)
        together = seen.transpose(0, 2, 1, 3).reshape(batch, length, hidden)
        states = self.mixed_norm(states + self.mixed(together))
        result: mx.array = self.norm(states + self.down(self.act(self.up(states))))
        return result


class Bert(nn.Module):  # type: ignore[misc]  # mlx is not type-checked
    """Embeddings of word, position and kind, and the layers."""

    def __init__(self, config: Mapping[str, Any], first_position: int) -> None:
        """`config` as catalog.embedding.recipe has checked it, which gives `first_position` too."""
        super().__init__()
        hidden = config["hidden_size"]
        self.first_position = first_position
        self.words = nn.Embedding(config["vocab_size"], hidden)
        self.positions = nn.Embedding(config["max_position_embeddings"], hidden)
        self.types = nn.Embedding(config.get("type_vocab_size", 2), hidden)
        self.norm = nn.LayerNorm(hidden, config.get("layer_norm_eps", 1e-12))
        self.layers = [Layer(config) for _ in range(config["num_hidden_layers"])]

    def states(self, tokens: mx.array, lengths: mx.array) -> Generator[None, None, mx.array]:
        """The last layer's states (batch, tokens, hidden) of `tokens` (batch, tokens), padded on the right to the
        longest of `lengths` (batch); pauses after each layer. All tokens are of the first kind, as of a single text."""
        length = tokens.shape[1]
        places = mx.arange(length)
        mask = (places < lengths[:, None])[:, None, None, :]
        embedded = self.words(tokens) + self.positions(places + self.first_position) + self.types(mx.array(0))
        states: mx.array = self.norm(embedded)
        for layer in self.layers:
            states = layer(states, mask)
            mx.eval(states)
            yield
        return states


def renamed(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors that a Bert has, under its names; heads for other tasks are left out."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        match = _OURS.search(name)
        if match is None or name.endswith("position_ids"):
            continue
        ours = match[1]
        for theirs, own in _NAMES:
            ours = ours.replace(theirs, own)
        found[ours] = value
    return found
