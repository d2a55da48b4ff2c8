"""The files of a release, as docs/format.md specifies them: how they are written and read."""

__all__ = ["POINTER_NAME"]

POINTER_NAME = "perfkit.json"  # of a release; its site is known by it
