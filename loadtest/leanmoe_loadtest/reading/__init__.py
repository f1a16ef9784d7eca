"""From a run folder to figures: statistics, goals, comparison, gate and report."""
