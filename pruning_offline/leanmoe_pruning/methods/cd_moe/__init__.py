"""CD-MoE: layers condensed to their shared and a few routed experts (arXiv 2412.00069)."""
