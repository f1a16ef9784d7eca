"""A server under more than it can do, under idle connections, behind a proxy."""
