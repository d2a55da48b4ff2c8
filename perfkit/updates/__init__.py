"""Keep a tree up to date with a source, and change only what differs."""
