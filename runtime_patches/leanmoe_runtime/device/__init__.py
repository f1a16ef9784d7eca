"""Skipping on accelerators, on persistent tensors only.

Python does not run when a captured graph is replayed. Everything a step's decision depends on
therefore lies in tensors whose addresses never change, and everything it counts stays on the
device until a poll asks. ``layer.py`` says which launches a step takes; ``selfcheck.py`` of
the benchmarks holds the kernels against references, on a GPU and under Triton's interpreter.
"""
