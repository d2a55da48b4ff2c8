"""Batches: copy, link, move and remove many files, mostly in parallel, with a result for each that failed.

A file, or a whole tree, is created under a temporary name and renamed: what has its final name is complete.
"""

from __future__ import annotations

from perfkit.filesystem.batch.copying import CopyResult, copy_tree, link_tree
from perfkit.filesystem.batch.moving import move_many
from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.batch.run import BatchResult, OnError

__all__ = ["BatchResult", "CopyResult", "OnError", "copy_tree", "link_tree", "move_many", "remove_tree"]
