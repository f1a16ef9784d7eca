"""What methods decide from: statistics of one pass over data, kept on disk."""
