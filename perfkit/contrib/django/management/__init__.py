"""The base class for your own commands."""

from perfkit.contrib.django.management.command import ToolkitCommand

__all__ = ["ToolkitCommand"]
