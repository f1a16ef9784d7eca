"""``leanmoe fleet``: one level for all replicas of a release, through their own addresses."""
