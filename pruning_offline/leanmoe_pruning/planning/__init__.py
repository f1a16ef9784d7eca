"""What a cut would take and give, from headers and config alone: no tensor is read."""
