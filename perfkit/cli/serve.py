"""`perfkit serve`."""

from __future__ import annotations

import argparse

from perfkit.cli.output import INTERRUPTED, Outcome, print_outcome
from perfkit.cli.parser import Parser, add_output

_EXAMPLES = """\
  perfkit serve public                 at http://127.0.0.1:8000/
  perfkit serve public --port 0        at a free port, which is printed
"""


def add_serve(serve: Parser) -> None:
    serve.add_argument("site", metavar="SITE", help="the directory to serve")
    what = "the port; 0 picks a free one (default 8000)"
    serve.add_argument("--port", type=int, default=8000, metavar="P", help=what)
    add_output(serve, "print the address as a JSON object", quiet="don't print the address")
    serve.describe(
        "Serve a directory on loopback, with Range requests, for development. Ctrl-C stops it.", _EXAMPLES, _serve
    )


def _serve(arguments: argparse.Namespace) -> int:
    from perfkit.server.server import Server

    server = Server(arguments.site, port=arguments.port)
    try:
        with server:
            note = f"serving {arguments.site} at {server.url}; press Ctrl-C to stop"
            print_outcome(arguments, Outcome({"url": server.url}, note))
            server.wait()
    except KeyboardInterrupt:
        server.close()  # the interrupt may have come before the block was entered
        return INTERRUPTED
    return 0
