"""The built-in tasks' items, and the script that wrote them."""
