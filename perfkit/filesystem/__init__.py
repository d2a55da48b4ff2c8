"""Touch the disk: names, traversal, hashing, batches, and changes that happen wholly or not at all."""
