"""NAEE: expert pruning by reconstruction loss (arXiv 2402.14800)."""
