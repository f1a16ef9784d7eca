"""The offline stage: scores, cuts and measures checkpoints layer by layer."""
