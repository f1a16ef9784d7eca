"""What a model is worth: perplexity, divergence, agreement, and their bounds."""
