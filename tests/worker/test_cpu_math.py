"""GELU, SwiGLU and attention that are fast on a CPU give what mlx's own functions give."""

import pytest

pytestmark = pytest.mark.model


def test_gelu_is_that_of_mlx_from_minus_ten_to_ten() -> None:
    import mlx.core as mx
    from mlx import nn

    from forgellm.worker import cpu_math

    x = mx.linspace(-10, 10, 100_001).reshape(1, 1, -1)
    assert mx.abs(cpu_math.gelu(x) - nn.gelu(x)).max().item() < 2e-6
    assert cpu_math.gelu(x.astype(mx.float16)).dtype == mx.float16


def test_swiglu_is_that_of_mlx_lm_to_the_last_bits_however_large_the_gate() -> None:
    import mlx.core as mx
    from mlx import nn

    from forgellm.worker import cpu_math

    def own(gate: mx.array, x: mx.array) -> mx.array:
        asked.append(gate.shape)
        return nn.silu(gate) * x

    asked: list[tuple[int, ...]] = []
    swiglu = cpu_math.swiglu(own)
    gate = mx.linspace(-80, 80, 100_000).reshape(1, 50, -1)
    x = mx.random.normal(gate.shape, key=mx.random.key(0))
    expected = nn.silu(gate) * x
    difference = mx.abs(swiglu(gate, x) - expected)
    assert (difference <= 1e-6 * mx.abs(expected)).all().item()
    assert asked == []  # it was not mlx-lm's
    far = swiglu(mx.array([[-1e30, -200.0, 200.0, 1e30]] * 4096), mx.ones((4096, 4)))
    assert mx.allclose(far[0], mx.array([0, 0, 200.0, 1e30]), atol=1e-6).item()
    assert mx.isnan(swiglu(mx.full((2, 8192), mx.nan), mx.ones((2, 8192)))).all().item()
    for small_or_half in (gate[:, 0], gate.astype(mx.float16)):
        swiglu(small_or_half, small_or_half)
    assert asked == [(1, 2000), (1, 50, 2000)]


def test_a_model_that_is_imported_after_the_engine_uses_it() -> None:
    import importlib.util

    import forgellm.worker.mlx_engine  # noqa: F401 - importing it is what is tested
    from forgellm.worker import cpu_math

    spec = importlib.util.find_spec("mlx_lm.models.llama")
    assert spec is not None
    assert spec.loader is not None
    llama = importlib.util.module_from_spec(spec)  # a fresh one, whoever imported it before
    spec.loader.exec_module(llama)
    assert llama.swiglu.__module__ == cpu_math.__name__


@pytest.mark.parametrize("together", [2, 1024])
def test_attention_is_that_of_mlx_in_one_block_or_several(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from forgellm.worker import cpu_math

    monkeypatch.setattr(cpu_math, "QUERIES_TOGETHER", together)
    queries, keys, values = (mx.random.normal((2, 3, 5, 4), key=mx.random.key(n)) for n in range(3))
    mask = (mx.arange(5) < mx.array([[5], [2]]))[:, None, None, :]
    found = cpu_math.attention(queries, keys, values, scale=0.5, mask=mask)
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.5, mask=mask)
    assert mx.abs(found - expected).max().item() < 1e-5
