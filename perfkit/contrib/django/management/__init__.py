"""The base class for commands of one's own."""

from perfkit.contrib.django.management.command import ToolkitCommand

__all__ = ["ToolkitCommand"]
