"""SHA-256 of one file, whole and by chunks, or of a whole tree with two processes."""
