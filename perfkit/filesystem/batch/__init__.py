"""Batches: copy, link, move, remove and write many files at once, in parallel, with a result for each that failed.

A file is made under a temporary name and renamed, or the whole tree is: what stands under a final name is whole.
"""

from __future__ import annotations

from perfkit.filesystem.batch.copying import Copied, copy_tree, link_tree
from perfkit.filesystem.batch.moving import move_many
from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.batch.run import BatchResult, OnError
from perfkit.filesystem.batch.writing import write_many

__all__ = ["BatchResult", "Copied", "OnError", "copy_tree", "link_tree", "move_many", "remove_tree", "write_many"]
