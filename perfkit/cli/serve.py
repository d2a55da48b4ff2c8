"""`perfkit serve`."""

from __future__ import annotations

import argparse
import json

from perfkit.cli.output import INTERRUPTED, print_text
from perfkit.cli.parser import Parser, add_output
from perfkit.progress.lines import say

__all__ = ["add_serve"]

_EXAMPLES = """\
examples:
  perfkit serve public                 at http://127.0.0.1:8000/
  perfkit serve public --port 0        at a free port, which is told
"""


def add_serve(serve: Parser) -> None:
    """The options of `perfkit serve`."""
    serve.description = "A small Range-capable HTTP server on loopback, for development. Ctrl-C ends it."
    serve.epilog = _EXAMPLES
    serve.add_argument("site", metavar="SITE", help="the directory to serve")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="0 picks a free one (default 8000)")
    add_output(serve, "print the address as a JSON object", quiet="don't tell the address")
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from perfkit.server.server import Server

    server = Server(arguments.site, port=arguments.port)
    try:
        with server:
            if arguments.json:
                print_text(json.dumps({"url": server.url}) + "\n")
            elif not arguments.quiet:
                say(f"perfkit: serving {arguments.site} at {server.url}; Ctrl-C ends it")
            server.wait()
    except KeyboardInterrupt:
        server.close()  # it may have come before the block was entered
        return INTERRUPTED
    return 0
