"""``leanmoe bench tune``: the tiles of vLLM's fused experts kernel, measured for a model."""
