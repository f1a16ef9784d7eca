"""One run on one GPU that checks what skipping does there and gains; see ``gpu_check.py``."""
