"""`python -m perfkit` is the `perfkit` command."""

from perfkit.cli import run

raise SystemExit(run())
