"""How LeanMoE's HTML pages look."""
