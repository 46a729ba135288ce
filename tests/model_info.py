"""What a loaded model says of itself, for tests that load none."""

from forgellm.messages import ModelInfo

INFO = ModelInfo(
    context_length=64,
    vocab_size=8,
    has_chat_template=True,
    parameters=1,
    quantization="none",
    layout="native",
    blas="stock",
    device="cpu",
    load_s=0.0,
)
