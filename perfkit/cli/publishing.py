"""The commands for a site: `publish`, `releases`, `check` and `prune`, which is for trees too."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from perfkit.cli.frame import define, outcome_of_check
from perfkit.cli.keys import add_sign_key
from perfkit.cli.output import INTERRUPTED, Outcome, print_outcome
from perfkit.cli.parser import Parser, add_progress
from perfkit.cli.settings import add_credentials, add_wait
from perfkit.config import parse_optional_seconds, parse_seconds
from perfkit.errors import ConfigError
from perfkit.progress.text import amount, counted, printable

if TYPE_CHECKING:
    from perfkit.releases.publish.publisher import Release
    from perfkit.toolkit import Toolkit

_PUBLISH_EXAMPLES = """\
  perfkit publish rules site --version 2026.11
  perfkit publish rules site --version 2026.12 --exclude '*.bak' --exclude .git
  perfkit publish rules site --version 'r{n}' --watch    again whenever files change
to upload it, the pointer last:
  rsync -a --exclude 'perfkit*.json' --exclude '.*' site/ web:/srv/rules/
  rsync -a site/perfkit*.json web:/srv/rules/
"""
_GRACE = "how long a site keeps objects that no release needs, for syncs under way, such as 6h (default 1d)"
_PROMOTE_EXAMPLES = """\
  perfkit promote site --channel canary --version 2026.12
  perfkit promote site --channel stable --version 2026.11 --sign-key release.key
"""
_PRUNE_EXAMPLES = """\
  perfkit prune site --dry-run       what no release has needed for a day
  perfkit prune rules --keep 0       every generation of a tree but the current one
"""


def add_publish(publish: Parser) -> None:
    publish.add_argument("src", metavar="SRC", help="the directory to publish")
    publish.add_argument("site", metavar="SITE", help="the site: a directory for any static file server")
    what = "the name of the release; {n} is replaced by its number, {time} by its time"
    publish.add_argument("--version", required=True, metavar="V", help=what)
    what = "publish again whenever files change, until Ctrl-C; --json prints an object for each release"
    publish.add_argument("--watch", action="store_true", help=what)
    what = "earlier releases with a direct delta (default 3)"
    publish.add_argument("--keep-deltas", type=int, default=3, metavar="N", help=what)
    what = "how many releases can be installed (default 16)"
    publish.add_argument("--keep-releases", type=int, default=16, metavar="N", help=what)
    publish.add_argument("--grace", default="1d", metavar="TIME", help=_GRACE)
    what = "compression level for first installs, from 1 (fast) to 22 (small; default 19)"
    publish.add_argument("--level", type=int, default=19, metavar="N", help=what)
    what = "names to leave out (can be repeated)"
    publish.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help=what)
    what = "symbolic links: refuse them (default), skip them, or publish what they point to"
    publish.add_argument("--links", choices=("refuse", "skip", "follow"), default="refuse", help=what)
    publish.add_argument("--serial", type=int, metavar="N", help="the serial of the release (default: the time)")
    add_sign_key(publish)
    add_wait(publish)
    add_progress(publish)
    define(publish, _publish, "Publish a directory as the current release of a static site.", _PUBLISH_EXAMPLES)


def _publish(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    if arguments.watch and arguments.serial is not None:
        raise ConfigError("--serial is for one release: leave it out with --watch")
    names = ("version", "keep_deltas", "keep_releases", "level", "exclude", "links")
    options = {name: getattr(arguments, name) for name in names}
    options |= {
        "grace_s": parse_seconds(arguments.grace),
        "wait_s": parse_seconds(arguments.wait),
        "sign_key": arguments.sign_key,
        "expires_s": parse_optional_seconds(arguments.expires),
    }
    if arguments.watch:
        with contextlib.closing(kit.publish_on_change(arguments.src, arguments.site, **options)) as releases:
            try:
                for release in releases:
                    print_outcome(arguments, _published(arguments, release))
            except KeyboardInterrupt:  # this is how to stop it
                raise SystemExit(INTERRUPTED) from None
    return _published(arguments, kit.publish(arguments.src, arguments.site, serial=arguments.serial, **options))


def _published(arguments: argparse.Namespace, release: Release) -> Outcome:
    if release.unchanged:
        done = "nothing to do" if arguments.expires is None else "its expiry is renewed"
        note = f"{arguments.site} offers {release.version} already; {done}"
    else:
        note = (
            f"{release.version} (release {release.number}): {counted(release.files, 'file')}, "
            f"{amount(release.bytes)}; {counted(release.objects_written, 'object')} with "
            f"{amount(release.bytes_written)} written in {release.seconds:.1f} s"
        )
    return Outcome({**dataclasses.asdict(release), "seconds": round(release.seconds, 3)}, note)


def add_releases(releases: Parser) -> None:
    releases.add_argument("url", metavar="URL", help="the URL of the site")
    add_credentials(releases)
    about = "List the releases of a site that sync --release can install; a star marks the current one."
    define(releases, _releases, about, "  perfkit releases https://example.org/rules")


def _releases(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    found = kit.releases(arguments.url)
    text = "".join(f"{'*' if each.current else ' '} {printable(each.version)}\n" for each in found)
    return Outcome({"releases": [dataclasses.asdict(each) for each in found]}, "", text)


def add_promote(promote: Parser) -> None:
    promote.add_argument("site", metavar="SITE", help="the site")
    promote.add_argument("--channel", required=True, metavar="NAME", help="the channel, such as stable")
    promote.add_argument("--version", required=True, metavar="V", help="the release, one of `perfkit releases`")
    add_sign_key(promote)
    add_wait(promote)
    about = "Have a channel of a site offer one of its releases; sync --channel follows it."
    define(promote, _promote, about, _PROMOTE_EXAMPLES)


def _promote(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    kit.promote(
        arguments.site,
        channel=arguments.channel,
        version=arguments.version,
        sign_key=arguments.sign_key,
        expires_s=parse_optional_seconds(arguments.expires),
        wait_s=parse_seconds(arguments.wait),
    )
    note = f"channel {arguments.channel} offers {printable(arguments.version)}"
    return Outcome({"channel": arguments.channel, "version": arguments.version}, note)


def add_check(check: Parser) -> None:
    check.add_argument("site", metavar="SITE", help="the site")
    add_progress(check)
    about = "Hash all objects of a site's releases; exits with 1 if one is missing or damaged."
    define(check, _check, about, "  perfkit check site")


def _check(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    report = kit.check_site(arguments.site)
    note = (
        f"{report.version} and {counted(report.releases - 1, 'earlier release')}: {counted(report.objects, 'object')} "
        f"with {amount(report.bytes)}, {len(report.missing)} missing, {len(report.damaged)} damaged"
    )
    return outcome_of_check(report, note, "missing", "damaged")


def add_prune(prune: Parser) -> None:
    prune.add_argument("path", metavar="DIR", help="the site, or the tree")
    keep = "generations before the current one that a tree keeps (default 1)"
    prune.add_argument("--keep", type=int, metavar="N", help=keep)
    prune.add_argument("--grace", metavar="TIME", help=_GRACE)
    prune.add_argument("--dry-run", action="store_true", help="print what would be removed, and change nothing")
    add_wait(prune)
    about = "Remove what no release of a site has needed for a day, or old generations of a tree."
    define(prune, _prune, about, _PRUNE_EXAMPLES)


def _prune(kit: Toolkit, arguments: argparse.Namespace) -> Outcome:
    wait_s = parse_seconds(arguments.wait)
    grace_s = parse_optional_seconds(arguments.grace)
    pruned = kit.prune(arguments.path, keep=arguments.keep, grace_s=grace_s, dry_run=arguments.dry_run, wait_s=wait_s)
    generations = f"{counted(pruned.generations, 'generation')}, " if pruned.generations else ""
    removed = "would be removed" if arguments.dry_run else "removed"
    note = f"{generations}{counted(pruned.objects, 'object')} with {amount(pruned.bytes)} {removed}"
    return Outcome(dataclasses.asdict(pruned), note)
