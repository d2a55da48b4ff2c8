"""Batches: copy, link, move and remove many files, mostly in parallel, with a result for each that failed.

A file, or a whole tree, is created under a temporary name and renamed: what has its final name is complete.
"""
