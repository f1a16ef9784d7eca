"""M-SMoE: experts merged into those that are used most (arXiv 2310.01334)."""
