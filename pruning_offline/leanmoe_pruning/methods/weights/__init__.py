"""Zeroing single weights of experts: MoE-Pruner, Wanda, magnitude, SparseGPT."""
