"""Weight-sparse matrices stored packed: what a checkpoint says of them, and how they are packed."""
