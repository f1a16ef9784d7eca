"""The vocabulary every part of LeanMoE shares; standard library and pydantic only."""

__version__ = "0.1.0"
