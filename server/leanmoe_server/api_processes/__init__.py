"""Several API processes before one engine: the first owns the policy, the others follow it."""
