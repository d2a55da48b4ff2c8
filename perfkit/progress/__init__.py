"""Show how far the work is: the numbers, and the ways to draw them."""
