"""Task files and the built-in tasks: what is asked. ``evaluation`` judges the answers."""
