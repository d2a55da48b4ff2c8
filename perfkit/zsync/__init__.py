"""Read zsync control files, and find the blocks that they list in an older file."""
