"""GELU and attention through numpy give what mlx's own functions give."""

import pytest

pytestmark = pytest.mark.model


def test_gelu_is_that_of_mlx_from_minus_ten_to_ten() -> None:
    import mlx.core as mx
    from mlx import nn

    from forgellm.worker import cpu_math

    x = mx.linspace(-10, 10, 100_001).reshape(1, 1, -1)
    assert mx.abs(cpu_math.gelu(x) - nn.gelu(x)).max().item() < 2e-6
    assert cpu_math.gelu(x.astype(mx.float16)).dtype == mx.float16


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
