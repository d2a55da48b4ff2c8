"""Read files for their digests: one by chunks, or a whole tree by two processes."""
