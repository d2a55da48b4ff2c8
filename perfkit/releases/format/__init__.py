"""Read and write the files of a release, as docs/format.md specifies them."""

__all__ = ["POINTER_NAME"]

POINTER_NAME = "perfkit.json"  # of the pointer; a site is recognised by it
