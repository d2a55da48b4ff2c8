"""perfkit: fast parallel downloads, live progress, and all-or-nothing changes, in plain synchronous Python."""

__version__ = "0.1.0"
