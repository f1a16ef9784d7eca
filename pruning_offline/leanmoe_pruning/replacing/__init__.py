"""Stand-ins for removed experts: what is asked for, what is fitted, on which outputs."""
