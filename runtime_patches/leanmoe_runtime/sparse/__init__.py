"""Weight-sparse experts that stay packed in memory: loading them into vLLM, computing with them."""
