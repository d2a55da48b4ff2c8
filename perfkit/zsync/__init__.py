"""Read zsync files, and find in an older file the blocks that they list."""
