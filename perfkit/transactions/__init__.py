"""Change a directory wholly or not at all, and go back to how it was."""
