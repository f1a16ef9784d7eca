"""Skipping on accelerators: one kernel per layer and step, on persistent tensors only.

Python does not run when a captured graph is replayed. Everything a step's decision depends on
therefore lies in tensors whose addresses never change, and everything it counts stays on the
device until a poll asks. None of this has been measured on a GPU yet; the kernel's results are
held against ``rule.decide`` under Triton's interpreter.
"""
