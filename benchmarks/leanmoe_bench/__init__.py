"""Side-by-side measurements against stock vLLM: one run, ratios with spread."""
