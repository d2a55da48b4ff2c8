"""Change a directory completely or not at all, and restore earlier states."""
