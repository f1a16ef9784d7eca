"""A running server judged as its users meet it: over HTTP, by what it writes."""
