"""Which dtype layout is chosen, and that it changes speed and memory but not meaning."""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear

from forgellm.worker.layout import decide, describe, f32_bytes, read_weights

pytestmark = pytest.mark.model


class Model(nn.Module):
    def __init__(self, dtype: mx.Dtype = mx.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 64)
        self.linear = nn.Linear(64, 64)
        self.experts = SwitchLinear(64, 64, 2)
        self.norm = nn.RMSNorm(64)
        self.set_dtype(dtype)

    def __call__(self, tokens: mx.array) -> mx.array:
        h = self.norm(self.linear(self.embed(tokens)))
        h = self.experts(h[:, None, :], mx.array([[0], [1]]))[:, 0]
        return self.embed.as_linear(h)


def run(model: Model) -> mx.array:
    return model(mx.array([3, 4])).astype(mx.float32)


def dtypes(model: nn.Module) -> set[mx.Dtype]:
    return {value.dtype for _, value in tree_flatten(model.parameters())}


@pytest.mark.parametrize(
    ("wanted", "on_cpu", "is_blas_fast", "budget", "expected"),
    [
        ("auto", True, True, 100, "f32"),
        ("auto", True, True, 99, "native"),  # does not fit
        ("auto", True, True, 0, "native"),  # not known
        ("auto", True, False, 1000, "native"),  # the reference BLAS is slower than the quantised loop
        ("auto", False, True, 1000, "native"),  # a GPU reads quantised weights faster
        ("f32", True, False, 0, "f32"),
        ("native", True, True, 1000, "native"),
    ],
)
def test_f32_is_chosen_on_a_cpu_with_memory_to_spare(
    wanted: str, on_cpu: bool, is_blas_fast: bool, budget: int, expected: str
) -> None:
    got = decide(wanted, on_cpu=on_cpu, is_blas_fast=is_blas_fast, f32_bytes=100, budget_bytes=budget)  # type: ignore[arg-type]
    assert got == expected


def test_dequantising_keeps_what_the_model_computes() -> None:
    model = Model()
    nn.quantize(model, group_size=32, bits=4)
    before, weight = run(model), f32_bytes(model)
    read_weights(model, "f32", on_cpu=True, progress=lambda _done: None)
    assert mx.allclose(run(model), before, atol=1e-3)
    assert isinstance(model.linear, nn.Linear)
    assert isinstance(model.experts, SwitchLinear)
    assert dtypes(model) == {mx.float32}
    assert sum(value.nbytes for _, value in tree_flatten(model.parameters())) == weight
    assert describe(model, 4) == "f32"


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_becomes_f32(dtype: mx.Dtype) -> None:
    model = Model(dtype)
    read_weights(model, "f32", on_cpu=True, progress=lambda _done: None)
    assert dtypes(model) == {mx.float32}


def test_native_on_a_cpu_keeps_packed_weights_with_f32_scales() -> None:
    """float16 scales would make the quantised matmul forty times slower on a CPU."""
    model = Model(mx.float16)
    nn.quantize(model, group_size=32, bits=4)
    read_weights(model, "native", on_cpu=True, progress=lambda _done: None)
    assert dtypes(model) == {mx.float32, mx.uint32}
    assert describe(model, 4) == "native 4-bit"


def test_native_elsewhere_changes_nothing() -> None:
    model = Model(mx.bfloat16)
    read_weights(model, "native", on_cpu=False, progress=lambda _done: None)
    assert dtypes(model) == {mx.bfloat16}
    assert describe(model, None) == "native bf16"


def test_progress_rises_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgellm.worker.layout.READ_BATCH_BYTES", 1000)
    seen: list[float] = []
    read_weights(Model(), "f32", on_cpu=True, progress=seen.append)
    assert seen == sorted(seen)
    assert len(seen) > 3
    assert seen[-1] == 1.0


def test_the_tiny_model_is_float32_and_has_an_index(tiny_folder: Path) -> None:
    weights = mx.load(str(tiny_folder / "model.safetensors"))
    assert {value.dtype for value in weights.values()} == {mx.float32}
    assert (tiny_folder / "model.safetensors.index.json").is_file()
    assert sum(path.stat().st_size for path in tiny_folder.iterdir()) < 2 << 20
