"""Builds a tiny random llama-family model folder, with a byte-level tokenizer and a chat template of its own.

Must not need a network or a real model: real MLX, real file formats, about half a megabyte, one dtype (float32).
"""

import json
from pathlib import Path

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = "<|im_end|>"

CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{ raise_exception('unknown role ' + message['role']) }}
{%- endif -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

_CORPUS = (
    "the quick brown fox jumps over the lazy dog and then sleeps in the sun while other animals watch from the hill",
    "what is the capital of France? the capital of France is Paris. one two three four five six seven eight nine ten",
    "user assistant system hello world, how are you today? I am fine, thank you. tell me a story about a small model",
    "naïve café über straße 日本語 中文 emoji 🙂🎉",
)


def build(
    folder: Path,
    *,
    chat_template: bool | str = True,
    extra_tokens: tuple[str, ...] = (),
    vocab: int = 384,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    context: int = 512,
    seed: int = 0,
) -> Path:
    """Write a model into `folder` (made if missing) and return it.

    `chat_template` True: CHAT_TEMPLATE. `extra_tokens` are tokens of their own, not special (as "<think>" is for Qwen).
    `vocab` includes 3 special tokens and 256 bytes, so it is at least 259. The weights are random, with the given seed,
    and wide enough that greedy answers differ from prompt to prompt. A step takes about a millisecond on one core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder, vocab, chat_template, extra_tokens)
    weights = _weights(vocab, layers, hidden, heads, seed)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in weights.values())},
        "weight_map": dict.fromkeys(sorted(weights), "model.safetensors"),
    }
    _write_json(folder / "model.safetensors.index.json", index)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": SPECIAL.index(EOS),
    }
    _write_json(folder / "config.json", config)
    return folder


def _write_tokenizer(folder: Path, vocab: int, chat_template: bool | str, extra_tokens: tuple[str, ...]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab - len(extra_tokens),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in extra_tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
    }
    if chat_template:
        config["chat_template"] = CHAT_TEMPLATE if chat_template is True else chat_template
    _write_json(folder / "tokenizer_config.json", config)


def _weights(vocab: int, layers: int, hidden: int, heads: int, seed: int) -> dict[str, mx.array]:
    keys = iter(mx.random.split(mx.random.key(seed), 2 + 7 * layers))

    def normal(rows: int, columns: int, gain: float = 1.0) -> mx.array:
        return mx.random.normal((rows, columns), scale=gain * columns**-0.5, key=next(keys))

    kv = hidden // 2
    weights = {
        "model.embed_tokens.weight": normal(vocab, hidden, 3.0),
        "model.norm.weight": mx.ones((hidden,)),
    }
    for layer in range(layers):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": mx.ones((hidden,)),
            f"{name}.post_attention_layernorm.weight": mx.ones((hidden,)),
            f"{name}.self_attn.q_proj.weight": normal(hidden, hidden, 2.0),
            f"{name}.self_attn.k_proj.weight": normal(kv, hidden, 2.0),
            f"{name}.self_attn.v_proj.weight": normal(kv, hidden, 2.0),
            f"{name}.self_attn.o_proj.weight": normal(hidden, hidden, 2.0),
            f"{name}.mlp.gate_proj.weight": normal(2 * hidden, hidden, 2.0),
            f"{name}.mlp.up_proj.weight": normal(2 * hidden, hidden, 2.0),
            f"{name}.mlp.down_proj.weight": normal(hidden, 2 * hidden, 2.0),
        }
    mx.eval(weights)
    return weights


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")
