"""One run on one GPU that checks every claim about skipping there; see ``gpu_check.py``."""
