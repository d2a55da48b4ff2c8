"""Ways to obtain the files of a tree."""
