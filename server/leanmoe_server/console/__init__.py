"""The console: one page at ``/console`` for an operator, and the data that it reads."""
