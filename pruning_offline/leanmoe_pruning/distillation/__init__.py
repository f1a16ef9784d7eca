"""A pruned model trained towards the model it was pruned from, its zeros kept."""
