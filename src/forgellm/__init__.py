"""ForgeLLM: MLX language models, each in a supervised process of its own."""
