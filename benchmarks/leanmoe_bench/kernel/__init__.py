"""``leanmoe bench kernel``: which way of leaving assignments out wins at how many rows."""
