"""Make releases: from a tree to a site."""
