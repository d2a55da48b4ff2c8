"""Ways to obtain the content of a file."""
