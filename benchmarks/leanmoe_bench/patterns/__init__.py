"""``leanmoe bench patterns``: what keeping N of every M weights costs beside no groups at all."""
