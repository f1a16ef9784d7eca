"""The runtime: a plugin of stock vLLM that skips experts per token."""
