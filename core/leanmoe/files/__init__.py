"""Digests, outputs in one step, outputs that go on after a kill."""
