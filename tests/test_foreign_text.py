"""Text from others: what reads it takes time in proportion to its length."""

from __future__ import annotations

import ast
import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import perfkit
from perfkit import PerfkitError, Request, Toolkit, TransferError
from perfkit.downloads.http import semantics, urls
from perfkit.redact import masked, redacted, redacted_text
from tests.support.fakes import MisbehavingServer

pytestmark = pytest.mark.once

ROOT = Path(perfkit.__file__).parent
SIZE = 32 << 10
# Of CPU time. Linear takes at most 5 milliseconds, quadratic 400 or more.
MOST_S = 0.2
UNITS = [
    "a", "a://", "://", "a:", ":", "/", "//", "@", "a@", "x://a@", "'", '"', "<", "=", "a=", "&a=b", ";", "?", "#",
    "%", "%4", " ", "\t", "\n", "\r", "\r\n", "\r\n ", "a \r\n", "a: \n", "0", "0-", "1,", "*", "[", "]", "[a", "a.",
    ".", "-", "~", "\\", "é", "bytes ", "bytes=", "<!--", "<?xml", "<a ", "-->", "https://", "http", "BZh1",
    "HTTP/1.1 200 ",
]  # fmt: skip


_USES = ("match", "fullmatch", "search", "findall", "finditer", "split", "sub")


def expressions() -> list[tuple[str, re.Pattern[Any], list[str]]]:
    """Every regular expression in the package that is written out, with its place, its flags and how it is used."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "\nimport re\n" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=use)):
                    pass
                case _:
                    continue
            try:
                pattern = ast.literal_eval(node.args[0])
            except ValueError:
                continue  # made of the names of our own files
            flags = [ast.unparse(each) for each in node.args[1:] if "re." in ast.unparse(each)]
            made = re.compile(pattern, eval(flags[0], {"re": re}) if flags else 0)
            name = source.splitlines()[node.lineno - 1].split(" ")[0]
            uses = [each for each in _USES if each == use or (name and f"{name}.{each}(" in source)]
            found.append((f"{path.relative_to(ROOT)}:{node.lineno}", made, uses or ["search"]))
    return found


def seconds(function: Callable[[], object]) -> float:
    began_s = time.thread_time()
    function()
    return time.thread_time() - began_s


def texts() -> Iterator[str]:
    for unit in UNITS:
        text = (unit * (SIZE // len(unit)))[:SIZE]
        yield from (text, f"x{text}\0", f"https://{text}://x")


def test_regular_expressions_are_linear() -> None:
    found, tried = expressions(), list(texts())
    assert len(found) > 40
    for place, expression, uses in found:
        for text in tried:
            given: Any = text.encode() if isinstance(expression.pattern, bytes) else text
            for use in uses:
                # Only `sub` and `finditer` go on after a match; they take the same steps.
                call = getattr(expression, "findall" if use in ("sub", "finditer") else use)
                assert seconds(functools.partial(call, given)) < MOST_S, (place, expression.pattern, use, text[:20])


def fails(function: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(ValueError, PerfkitError):
        function(text)


@pytest.mark.parametrize(
    "function",
    [
        redacted,
        redacted_text,
        masked,
        urls.as_sent,
        urls.origin_of,
        semantics.parse_content_range,
        semantics.parse_date,
        semantics.parse_repr_digest,
        semantics.content_disposition_names,
        lambda text: semantics.parse_retry_after(text, now=semantics.parse_date("Sun, 06 Nov 1994 08:49:37 GMT")),
        lambda text: semantics.judge(206, {"content-range": text}, (0, None), None),
        lambda text: semantics.judge(200, {"content-length": text}, (0, None), None),
        lambda text: str(TransferError("https://example.org/", text)),
        lambda text: repr(TransferError(text, text)),
    ],
)
def test_what_reads_text_of_a_server_is_linear(function: Callable[[str], object]) -> None:
    for text in texts():
        assert seconds(functools.partial(fails, function, text)) < MOST_S, text[:20]


FIELDS = [
    "Location", "Content-Range", "Content-Length", "Content-Encoding", "Content-Disposition", "ETag", "Last-Modified",
    "Date", "Retry-After", "Repr-Digest", "Set-Cookie", "Set-Cookie2", "Transfer-Encoding", "Connection",
    "Content-Type",
]  # fmt: skip


@pytest.mark.parametrize(("field", "with_session"), [
    *((field, False) for field in FIELDS), *((field, True) for field in ("Location", "Set-Cookie", "Set-Cookie2")),
])  # fmt: skip
def test_a_long_header_field(
    make_kit: Callable[..., Toolkit],
    misbehaving: Callable[..., MisbehavingServer],
    tmp_path: Path,
    field: str,
    with_session: bool,
) -> None:
    """A download of it, and its error, take little time and memory, whatever the answer."""
    units = ["a://", "a,", "a;", "1", '="', "a=b;"]

    def handler(x: Any) -> None:
        unit, status = x.asked.path.removeprefix("/").split("-")
        value = (units[int(unit)] * 60_000)[:60_000]
        x.send(f"HTTP/1.1 {status} No\r\nSet-Cookie: a=b\r\n{field}: {value}\r\n\r\nabc".encode())
        x.hang_up()

    server = misbehaving(handler)
    kit = make_kit(requests.Session() if with_session else None, retries=0)
    urls = [f"{server.url}/{unit}-{status}" for unit in range(len(units)) for status in (200, 206, 302, 416, 503)]
    began_s, errors = time.process_time(), []
    for number, url in enumerate(urls):
        ((_, download),) = kit.iter_downloads([Request(url, f"{number}", resume=False)], tmp_path)
        errors.append(f"{download.error} {download.error!r}")
    assert time.process_time() - began_s < 50 * MOST_S
    assert max(map(len, errors)) < 2000
