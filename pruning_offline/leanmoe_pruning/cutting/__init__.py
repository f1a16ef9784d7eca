"""From a decision to a lean checkpoint: plans, pieces, the shard writer."""
