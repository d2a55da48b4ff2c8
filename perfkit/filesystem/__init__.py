"""Touch the disk, and keep nothing: names, traversal, watching, hashing, batches."""
