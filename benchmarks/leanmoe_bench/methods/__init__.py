"""``leanmoe bench methods``: every pruning method on one model, by the same judge."""
