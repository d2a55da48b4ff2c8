"""`perfkit publish`: a directory as the release of a site."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from perfkit.cli.frame import toolkit_for
from perfkit.cli.output import INTERRUPTED, print_result
from perfkit.cli.parser import Parser, add_output, add_progress
from perfkit.progress.text import amount, counted

if TYPE_CHECKING:
    from perfkit.releases.publish.publisher import Release

__all__ = ["add_publish"]

_PUBLISH_EXAMPLES = """\
examples:
  perfkit publish rules site --version 2026.11
  perfkit publish rules site --version 2026.12 --exclude '*.bak' --exclude .git
  perfkit publish rules site --version 'r{n}' --watch    again whenever files change
to upload it, the pointer last:
  rsync -a --exclude perfkit.json site/ web:/srv/rules/
  rsync -a site/perfkit.json web:/srv/rules/
"""


def add_publish(publish: Parser) -> None:
    """Add the options of `perfkit publish`."""
    publish.description = "Publish a directory as the current release of a static site."
    publish.epilog = _PUBLISH_EXAMPLES
    publish.add_argument("src", metavar="SRC", help="the directory to publish")
    publish.add_argument("site", metavar="SITE", help="the site: a directory for any static file server")
    what = "the name of the release; {n} is replaced by its number, {time} by its time"
    publish.add_argument("--version", required=True, metavar="V", help=what)
    publish.add_argument("--watch", action="store_true", help="publish again whenever files change, until Ctrl-C")
    publish.add_argument(
        "--keep-deltas", type=int, default=3, metavar="N", help="earlier releases with a direct delta (default 3)"
    )
    publish.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="names to leave out (can be repeated)"
    )
    add_progress(publish)
    add_output(publish, "print one JSON object for each release")
    publish.set_defaults(run=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    names = ("version", "keep_deltas", "exclude")
    options = {name: getattr(arguments, name) for name in names}
    with toolkit_for(arguments) as kit:
        if arguments.watch:
            with contextlib.closing(kit.publish_on_change(arguments.src, arguments.site, **options)) as releases:
                try:
                    for release in releases:
                        _print_release(arguments, release)
                except KeyboardInterrupt:  # this is how to stop it
                    return INTERRUPTED
        release = kit.publish(arguments.src, arguments.site, **options)
    _print_release(arguments, release)
    return 0


def _print_release(arguments: argparse.Namespace, release: Release) -> None:
    if release.unchanged:
        note = f"{arguments.site} offers {release.version} already; nothing to do"
    else:
        note = (
            f"{release.version} (release {release.number}): {counted(release.files, 'file')}, "
            f"{amount(release.bytes)}; {counted(release.objects_written, 'object')} with "
            f"{amount(release.bytes_written)} written in {release.seconds:.1f} s"
        )
    print_result(arguments, {**dataclasses.asdict(release), "seconds": round(release.seconds, 3)}, note)
