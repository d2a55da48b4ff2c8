"""Publish a directory tree as a release on a static site."""
