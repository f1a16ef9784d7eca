"""From a run folder to figures: statistics, goals, comparison, checks and report."""
