"""Checkpoints on disk: opened, checked, read and written tensor by tensor."""
