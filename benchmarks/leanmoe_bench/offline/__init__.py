"""``leanmoe bench offline``: the speed of deciding and the memory of scoring."""
