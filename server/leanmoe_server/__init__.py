"""The server: vLLM's OpenAI app with live skip levels and metrics."""
