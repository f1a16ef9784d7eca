"""EEP: evolutionary expert pruning and merging without gradients (arXiv 2407.00945)."""
