"""``leanmoe bench hostile``: requests that mean harm or make no sense, sent to a running server."""
