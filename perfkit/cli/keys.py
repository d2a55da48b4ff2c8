"""`perfkit keygen`, and the options of other commands that take keys."""

from __future__ import annotations

import argparse
import os

from perfkit.cli.output import Outcome, print_outcome
from perfkit.cli.parser import Parser, add_output
from perfkit.errors import ConfigError
from perfkit.libc import sync_file

_EXAMPLES = """\
  perfkit keygen release.key              and release.key.pub, for clients
  perfkit keygen release.key --json       prints the public key for a program
with it: perfkit publish --sign-key release.key, perfkit sync --public-key release.key.pub
"""


def add_keygen(keygen: Parser) -> None:
    keygen.add_argument("file", metavar="FILE", help="the file of the secret key; must not exist yet")
    add_output(keygen, "print the public key as a JSON object")
    keygen.describe(
        "Make a key pair, in the format of minisign: FILE, which is secret, and FILE.pub.", _EXAMPLES, _keygen
    )


def _keygen(arguments: argparse.Namespace) -> int:
    from perfkit.minisign.secret_keys import SecretKey

    key = SecretKey.generate()
    files = {arguments.file: (key.encode(), 0o600), f"{arguments.file}.pub": (key.public.encode(), 0o644)}
    for path in files:
        if os.path.lexists(path):
            raise ConfigError(f"{path} exists already; choose another file")
    for path, (content, mode) in files.items():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            sync_file(descriptor)
    names = {"secret_key": arguments.file, "public_key": str(key.public), "id": key.public.name}
    note = f"{arguments.file} is the secret key, {arguments.file}.pub the public one: {key.public}"
    print_outcome(arguments, Outcome(names, note))
    return 0


def add_sign_key(publish: Parser) -> None:
    """Add the options of a command that signs."""
    what = "the file of a secret key that signs the release (can be repeated)"
    publish.add_argument("--sign-key", action="append", default=[], metavar="FILE", help=what)
    what = "how long clients may install the release, such as 14d; repeat the command before then to renew it"
    publish.add_argument("--expires", metavar="TIME", help=what)


def add_public_key(command: Parser) -> None:
    """Add the option of a command that verifies signatures."""
    what = "a public key that has to sign, or a file with one (can be repeated)"
    command.add_argument("--public-key", dest="public_keys", action="append", default=[], metavar="KEY", help=what)
