"""Keep a tree in step with a source, and change only what changed."""
