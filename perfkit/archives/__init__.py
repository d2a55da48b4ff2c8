"""Read remote zip and tar archives, compressed or not."""
