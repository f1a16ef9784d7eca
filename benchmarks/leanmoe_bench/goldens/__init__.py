"""``leanmoe bench goldens SET``: our numbers against those of the published code, any set alike."""
