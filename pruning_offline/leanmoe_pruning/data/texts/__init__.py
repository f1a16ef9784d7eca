"""Calibration and held-out texts by domain (see README.md for their sources)."""
