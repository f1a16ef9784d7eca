"""``leanmoe bench serve``: whole engines, ours beside stock vLLM."""
