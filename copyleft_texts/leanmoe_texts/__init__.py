"""Texts and task items under copyleft licences, to calibrate and judge on: data, no code.

``leanmoe_pruning.data`` finds them here where this distribution is installed; see README.md.
"""
