"""In which dtype a model's weights are held: decides, then converts and reads them, module by module.

Knows no files and no requests.

On a CPU, mlx's quantised matmul is a plain loop (about 3 GFLOPS) and half-precision matmul never reaches the BLAS;
float32 does (100 GFLOPS and more). Dequantising at load is therefore worth its memory wherever it fits.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from forgellm.messages import EngineOptions

Layout = Literal["f32", "native"]

READ_BATCH_BYTES = 64 << 20
"""Weights are read in pieces of about this size, so that progress moves and the peak stays near the result."""


def settle(model: nn.Module, options: EngineOptions, *, is_blas_fast: bool, progress: Callable[[float], None]) -> None:
    """Read the lazily loaded `model` into memory, in the layout that the options make the best one here."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    choice = decide(
        options.layout,
        on_cpu=on_cpu,
        is_blas_fast=is_blas_fast,
        f32_bytes=f32_bytes(model),
        budget_bytes=options.memory_budget_bytes,
    )
    read_weights(model, choice, on_cpu=on_cpu, progress=progress)


def decide(
    wanted: Literal["auto", "f32", "native"], *, on_cpu: bool, is_blas_fast: bool, f32_bytes: int, budget_bytes: int
) -> Layout:
    """The layout to use. "auto" is f32 on a CPU with an optimised BLAS if `f32_bytes` of weights fit the budget (0 =
    not known: native); with the stock BLAS, f32 would be slower than the quantised loop, so native."""
    if wanted != "auto":
        return wanted
    return "f32" if on_cpu and is_blas_fast and 0 < f32_bytes <= budget_bytes else "native"


def f32_bytes(model: nn.Module) -> int:
    """What the weights of `model` weigh in f32; nothing is read."""
    return sum(4 * _parameters(module) for _, module in _leaves(model))


def held_bytes(model: nn.Module) -> int:
    """What the weights of `model` weigh as they are held."""
    return sum(int(value.nbytes) for _, value in tree_flatten(model.parameters()))


def read_weights(model: nn.Module, layout: Layout, *, on_cpu: bool, progress: Callable[[float], None]) -> None:
    """Convert the lazily loaded `model` in place and read it into memory. `progress` gets 0..1.

    "native" on a CPU still brings everything but packed weights to f32 where weights are packed: float16 scales make
    the quantised matmul 40 times slower there.
    """
    leaves = list(_leaves(model))
    is_packed = any("scales" in module for _, module in leaves)
    to_f32 = layout == "f32" or (on_cpu and is_packed)
    total = sum(_parameters(module) for _, module in leaves) or 1
    done = pending = 0
    waiting: list[Any] = []
    for name, module in leaves:
        size = _parameters(module)
        ready = _dequantised(module) if layout == "f32" else module
        if ready is not module:
            model.update_modules(tree_unflatten([(name, ready)]))
        if to_f32:
            ready.update(tree_map(_as_f32, ready.parameters()))
        waiting.append(ready.parameters())
        pending += 4 * size
        done += size
        if pending >= READ_BATCH_BYTES:
            mx.eval(waiting)
            waiting, pending = [], 0
            progress(done / total)
    if to_f32:
        model.update(tree_map(_as_f32, model.parameters()))  # what no leaf module holds, as LoRA's matrices
    mx.eval(waiting, model.parameters())
    mx.clear_cache()
    progress(1.0)


def describe(model: nn.Module, bits: int | None) -> str:
    """What was done, for the status: "f32", "native 4-bit", "native bf16" …"""
    floats = {str(v.dtype).rsplit(".", 1)[-1] for _, v in tree_flatten(model.parameters()) if _is_float(v)}
    if any("scales" in module for _, module in _leaves(model)):
        return f"native {bits}-bit" if bits else "native quantised"
    short = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    names = "+".join(sorted(short.get(name, name) for name in floats))
    return names if names == "f32" else f"native {names}"


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from tree_flatten(model.leaf_modules(), is_leaf=lambda m: isinstance(m, nn.Module))


def _parameters(module: nn.Module) -> int:
    """Number of weights that `module` stands for; a packed one holds 32 / bits in each word."""
    if "scales" in module and hasattr(module, "bits"):
        bias = int(module.bias.size) if "bias" in module else 0
        return int(module.weight.size) * 32 // int(module.bits) + bias
    return sum(int(v.size) for _, v in tree_flatten(module.parameters()))


def _is_float(value: mx.array) -> bool:
    return bool(mx.issubdtype(value.dtype, mx.floating))


def _as_f32(value: mx.array) -> mx.array:
    return value.astype(mx.float32) if _is_float(value) else value


def _dequantised(module: nn.Module) -> nn.Module:
    """The dense module of the same meaning, lazily; `module` itself if it is not one of the quantised kinds."""
    for packed, dense in _dense_kinds():
        if isinstance(module, packed) and "global_scale" not in module:
            biases = module.get("biases")
            made = dense()
            made.weight = mx.dequantize(
                module.weight,
                _as_f32(module.scales),
                None if biases is None else _as_f32(biases),
                module.group_size,
                module.bits,
                module.mode,
            )
            if "bias" in module:
                made.bias = module.bias
            return made
    return module


def _dense_kinds() -> list[tuple[type[nn.Module], Callable[[], nn.Module]]]:
    """How to make the dense twin of each quantised kind; its first weight is replaced at once, and never computed."""
    kinds: list[tuple[type[nn.Module], Callable[[], nn.Module]]] = [
        (nn.QuantizedEmbedding, lambda: nn.Embedding(1, 1)),
        (nn.QuantizedLinear, lambda: nn.Linear(1, 1, bias=False)),
    ]
    # Models with such layers are mlx-lm's, which is then imported. For others it need not be: it takes 1.2 s and 50 MB.
    if (switch := sys.modules.get("mlx_lm.models.switch_layers")) is not None:
        kinds.append((switch.QuantizedSwitchLinear, lambda: switch.SwitchLinear(1, 1, 1, bias=False)))
    return kinds
