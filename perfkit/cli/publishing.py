"""`perfkit publish` and `releases`: what a site offers."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from perfkit.cli.frame import Outcome, define, toolkit_for
from perfkit.cli.output import INTERRUPTED, print_result
from perfkit.cli.parser import Parser, add_output, add_progress
from perfkit.progress.text import amount, counted, printable

if TYPE_CHECKING:
    from perfkit.releases.publish.publisher import Release
    from perfkit.toolkit import Toolkit

__all__ = ["add_publish", "add_releases"]

_PUBLISH_EXAMPLES = """\
examples:
  perfkit publish rules site --version 2026.11
  perfkit publish rules site --version 2026.12 --exclude '*.bak' --exclude .git
  perfkit publish rules site --version 'r{n}' --watch    again whenever files change
to upload it, the pointer last:
  rsync -a --exclude perfkit.json site/ web:/srv/rules/
  rsync -a site/perfkit.json web:/srv/rules/
"""
_RELEASES_EXAMPLES = """\
examples:
  perfkit releases https://example.org/rules
  perfkit releases https://example.org/rules --json
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


def add_releases(releases: Parser) -> None:
    """Add the options of `perfkit releases`."""
    releases.add_argument("url", metavar="URL", help="of the site")
    about = "List the releases of a site that sync --release can install; a star marks the current one."
    define(releases, _releases, about, _RELEASES_EXAMPLES)


def _releases(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    found = kit.releases(arguments.url)
    text = "".join(f"{'*' if each.current else ' '} {printable(each.version)}\n" for each in found)
    return Outcome({"releases": [dataclasses.asdict(each) for each in found]}, "", text)
