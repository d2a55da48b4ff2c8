"""Stateless file system tools: names, traversal, watching, hashing, batches."""
