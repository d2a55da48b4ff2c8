"""Releases: their file formats, and how they are published."""
