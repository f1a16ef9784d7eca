"""Cuts whose layers are chosen together, beside cuts by chance."""
