"""Two engines in processes of their own: what they are asked, and what comes of it."""
