"""Types of settings and arguments: each works as in requests, or is a ConfigError at once."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from perfkit import (
    Bars,
    BatchError,
    CallbackProgress,
    Config,
    ConfigError,
    Download,
    JsonLines,
    PerfkitError,
    Request,
    Toolkit,
    TransferError,
    read_trees,
)
from perfkit.archives.members import Selection
from perfkit.cli import main
from perfkit.config import parse_size
from perfkit.downloads.http.semantics import Version
from perfkit.downloads.shared_limits import SharedLimits, Use
from perfkit.server.server import Server
from perfkit.testing import FakeOrigin
from tests.support.fakes import MisbehavingServer
from tests.support.network import BODY

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

URL = "https://example.org/f"


@pytest.mark.parametrize(
    "options",
    [
        {"workers": "4"},
        {"workers": 4.0},
        {"workers": True},
        {"retries": None},
        {"rate_limit": "5M"},
        {"read_timeout_s": "30"},
        {"read_timeout_s": None},
        {"auth": "u:p"},
        {"auth": ("u",)},
        {"auth": ("u", 3)},
        {"auth": ["u", "p"]},
        {"verify": None},
        {"verify": 1},
        {"verify": ""},
        {"ca_bundle": 3},
        {"client_cert": ("a", "b", "c")},
        {"headers": [("a", "b")]},
        {"headers": {"a": 1}},
        {"headers": "a: b"},
        {"proxies": "http://proxy"},
        {"proxies": {"http": None}},
        {"trust_env": "no"},
        {"durable": 1},
        {"local_changes": None},
    ],
)
def test_a_setting_of_the_wrong_type(options: dict[str, Any]) -> None:
    """Is named, with what it should be."""
    (name,) = options
    with pytest.raises(ConfigError, match=rf"Config\.{name} "):
        Config(**options)


@pytest.mark.parametrize("options", [{"auth": "u:s3cret"}, {"headers": "a: s3cret"}, {"proxies": "s3cret"}])
def test_a_secret_of_the_wrong_type_is_not_shown(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**options)
    assert "s3cret" not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize(
    ("name", "value", "then"),
    [
        ("headers", None, {}),
        ("proxies", None, {}),
        ("verify", "/path", "/path"),
        ("verify", Path("/path"), "/path"),
        ("ca_bundle", Path("/path"), "/path"),
        ("auth", ("u", "p"), ("u", "p")),
        ("read_timeout_s", 30, 30),
    ],
)
def test_what_requests_takes_is_taken(name: str, value: Any, then: Any) -> None:
    assert getattr(Config(**{name: value}), name) == then


REFUSED = [
    "https://me:s3/s3cret@example.org/",
    "https://me:s3cret@example.org:port/",
    "https://me:s3cret@a b/",
    "me:s3cret@example.org/f",
    "htps://me:s3cret@example.org/f",
    "https:/me:s3cret@example.org/f",
    "https://example.org\\@x/?token=s3cret",
    "ftp://example.org/?token=s3cret#s3cret",
    "https://me:s3'cr@example.org\\/?a='s3cret",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_refused_url_is_shown_without_its_secrets(url: str, tmp_path: Path, capsys: Any) -> None:
    """By errors, their `repr`, and JSON; as a URL, a mirror, a source, and one of several."""
    shown = []
    with Toolkit(Config(retries=0)) as kit:
        for use in (
            lambda: Request(url),
            lambda: Request(URL, mirrors=(url,)),
            lambda: Request(URL, mirrors=url),  # type: ignore[arg-type]
            lambda: Request(URL, home=url),
            lambda: kit.download(url, tmp_path / "f"),
            lambda: kit.sync(url, tmp_path / "tree"),
            lambda: kit.download_many([url, (url, "f"), {"url": url}, (url,)], tmp_path),  # type: ignore[list-item]
        ):
            with pytest.raises(PerfkitError) as caught:
                use()
            shown.append(f"{caught.value} {caught.value!r}")
    for arguments in (["get", "--json", url], ["get", "--mirror", url, URL]):
        with contextlib.suppress(SystemExit):
            main([*arguments, "--quiet"])
        shown += capsys.readouterr()
    assert not [each for each in shown if "s3" in each or "cr@" in each]


@pytest.mark.parametrize(
    "headers", [{"Authorization: Bearer s3cret": "x"}, {"s3cret\n": "x"}, {"X": "s3cret\r\n"}, {"X": "s3cret€"}]
)
def test_a_refused_header_is_not_shown(headers: Any) -> None:
    for use in (lambda: Config(headers=headers), lambda: Request(URL, headers=headers)):
        with pytest.raises(ConfigError) as caught:
            use()
        assert "s3cret" not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("value", ["s3cret\n", " s3cret", "\x7fs3cret\r\n", b"s3cret\n"])
def test_a_header_of_a_session_that_cannot_be_sent(make_kit: MakeKit, tmp_path: Path, value: Any) -> None:
    session = requests.Session()
    session.headers["X-Key"] = value
    with pytest.raises(TransferError, match="a header of the session") as caught:
        make_kit(session).download("http://127.0.0.1:1/f", tmp_path / "f")
    assert "s3cret" not in f"{caught.value} {caught.value!r}"
    assert not caught.value.transient


def test_what_is_secret_is_not_in_a_repr(tmp_path: Path) -> None:
    """Nor in the JSON of a command, nor in what it says of the disk."""
    url = "https://me:s3cret@example.org/f?token=s3cret"
    request = Request(url, "f", headers={"X": "s3cret"}, auth=("me", "s3cret"), mirrors=(url,), home=url, segments=2)
    config = Config(headers={"X": "s3cret"}, auth=("me", "s3cret"), proxies={"http": "http://me:s3cret@proxy"})
    shown = f"{request!r} {Download(url=url, path='/f', bytes=3)!r} {config!r}"
    assert "s3cret" not in shown
    for part in ("Request(", "https://***@example.org/f?token=***", "segments=2", "Download(", "path='/f'", "bytes=3"):
        assert part in shown


def test_any_auth_object(make_kit: MakeKit) -> None:
    for auth in (requests.auth.HTTPDigestAuth("u", "p"), requests.auth.HTTPBasicAuth("u", "p"), lambda each: each):
        assert Config(auth=auth).auth is auth


def test_verify_is_a_path(make_kit: MakeKit, secure: MisbehavingServer, ca_file: str, tmp_path: Path) -> None:
    """As requests has it."""
    make_kit(verify=ca_file).download(f"{secure.url}/f", tmp_path / "f")
    make_kit(verify=Path(ca_file)).download(f"{secure.url}/f", tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == BODY


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"config": {"workers": 4}}, "config must be"),
        ({"progress": print}, "progress must be .* CallbackProgress"),
        ({"progress": True}, "progress must be"),
        ({"session": 3}, "session must be"),
        ({"session": "https://example.org"}, "session must be"),
        ({"session": requests}, "session must be"),
        ({"session": SimpleNamespace(request=print)}, "session must be"),
        ({"transport": 3}, "transport must be a callable"),
        ({"limits": "5M"}, "limits must be a LimitStore"),
        ({"session": requests.Session(), "transport": FakeOrigin()}, "give session or transport"),
    ],
)
def test_an_argument_of_a_toolkit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Toolkit(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"auth": "u:s3cret"},
        {"auth": ("u", 3)},
        {"headers": "a: s3cret"},
        {"headers": {"a": 1}},
        {"headers": [("a", "b")]},
        {"mirrors": "https://example.org/g"},
        {"mirrors": 3},
        {"checksum": 3},
        {"checksum": b"sha256:00"},
        {"rate_limit": "5M"},
        {"max_bytes": "5M"},
        {"max_bytes": -1},
        {"segments": "4"},
        {"segments": True},
        {"byte_range": "0-99"},
        {"byte_range": (0, "99")},
        {"byte_range": (0, 1, 2)},
        {"known": "etag"},
        {"only": '"v1"'},
        {"resume": "no"},
    ],
)
def test_an_option_of_a_request(options: dict[str, Any], tmp_path: Path) -> None:
    """Is named, whether given to `download` or to `Request`; and secrets are not shown."""
    (name,) = options
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        origin.add(URL, "hello")
        for ask in (lambda: kit.download(URL, tmp_path / "f", **options), lambda: Request(URL, **options)):
            with pytest.raises(ConfigError, match=name.rstrip("s")) as caught:
                ask()
            assert "s3cret" not in str(caught.value)
        assert origin.requests == []


@pytest.mark.parametrize("url", [3, None, b"https://example.org/f", Path("/f"), io.StringIO()])
def test_a_url_of_the_wrong_type(url: Any, tmp_path: Path) -> None:
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        with pytest.raises(ConfigError, match="URL"):
            kit.download(url, tmp_path / "f")
        if url is not None:  # which says that there is nothing to give just now
            with pytest.raises(BatchError, match="URL"):
                kit.download_many([url], tmp_path)


@pytest.mark.parametrize("keys", [None, "", b"", 0, False])
def test_missing_public_keys_are_not_taken_for_no_keys(keys: Any, tmp_path: Path) -> None:
    """A variable that is not set would turn verification off."""
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        for ask in (
            lambda: Request(URL, public_keys=keys),
            lambda: kit.download(URL, tmp_path / "f", public_keys=keys),
            lambda: kit.sync(URL, tmp_path / "tree", public_keys=keys),
        ):
            with pytest.raises(ConfigError, match="public keys must be a list"):
                ask()
        assert origin.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda kit, place: kit.sync(URL, place, wait_s="5"), "wait_s"),
        (lambda kit, place: kit.sync(URL, place, wait_s=float("nan")), "wait_s"),
        (lambda kit, place: kit.sync(3, place), "source"),
        (lambda kit, place: kit.sync(URL, place, allow_expired="no"), "allow_expired"),
        (lambda kit, place: kit.sync(URL, place, mirrors=URL), "mirrors"),
        (lambda kit, place: kit.sync(URL, place, checksums=""), "checksums"),
        (lambda kit, place: kit.sync(URL, place, check="run-tests"), "check"),
        (lambda kit, place: kit.sync(URL, place, channel=1), "channel"),
        (lambda kit, place: kit.plan(URL, place, release=2026.11), "release"),
        (lambda kit, place: kit.publish(place, f"{place}/site", version="1", exclude="*.tmp"), "exclude"),
        (lambda kit, place: kit.publish(place, f"{place}/site", version="1", level="9"), "level"),
        (lambda kit, place: kit.publish(place, f"{place}/site", version="1", sign_key=3), "sign_key"),
        (lambda kit, place: kit.publish_on_change(place, f"{place}/site", version="{n}", grace_s=None), "grace_s"),
        (lambda kit, place: kit.prune(place, dry_run="no"), "dry_run"),
        (lambda kit, place: kit.rollback(place, to="1"), "to"),
        (lambda kit, place: kit.verify(place, repair="no"), "repair"),
        (lambda kit, place: kit.remove_tree(0), "path"),
        (lambda kit, place: kit.copy_tree(place, f"{place}-copy", on_error="skip"), "on_error"),
        (lambda kit, place: kit.releases(b"s3cret"), "url"),
    ],
)
def test_an_argument_of_a_method(use: Callable[[Toolkit, Path], Any], name: str, tmp_path: Path) -> None:
    """Of the wrong type: is named, and nothing is requested or written."""
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        with pytest.raises(ConfigError, match=rf"^{name} must be") as caught:
            use(kit, tmp_path)
        assert "s3cret" not in str(caught.value)
        assert origin.requests == []
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.parent.glob(".perfkit-*")) == []


@pytest.mark.parametrize("given", [URL, URL.encode(), None, 3])
def test_a_batch_of_the_wrong_type(given: Any, tmp_path: Path) -> None:
    """The letters of a single URL are not taken for many."""
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        with pytest.raises(ConfigError, match="must be a list"):
            kit.download_many(given, tmp_path / "out")
        assert origin.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limits", [(0, 1), (-1, 1), (None, 0), ("5M", 1), (1.5, 1), (float("nan"), 1), (1, None)])
def test_shared_limits_of_the_wrong_type(limits: Any) -> None:
    with pytest.raises(ConfigError, match=r"rate|connections"):
        SharedLimits(*limits)


def test_any_text_is_a_key(tmp_path: Path) -> None:
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        origin.add(URL, "hello")
        kit.download(URL, tmp_path / "f", key="\ud800")
    assert (tmp_path / "f").read_text() == "hello"


def test_headers_may_be_none(tmp_path: Path) -> None:
    """In `download`, in a Request, and in the settings."""
    with FakeOrigin() as origin, Toolkit(Config(headers=None), transport=origin) as kit:
        origin.add(URL, "hello")
        kit.download(URL, tmp_path / "f", headers=None)
        kit.download(Request(URL, headers=None), tmp_path / "g")  # type: ignore[arg-type]
    assert (tmp_path / "f").read_text() == (tmp_path / "g").read_text() == "hello"


def test_download_takes_what_a_request_takes(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit()
    url = f"{server.url}/f"
    options: dict[str, Any] = {
        "auth": ("u", "p"),
        "headers": {"X-A": "b"},
        "mirrors": [f"{server.url}/g"],
        "segments": 1,
        "rate_limit": 1 << 30,
        "max_bytes": 1 << 30,
        "byte_range": (10, 20),
        "resume": False,
        "only": Version(etag='"v1"'),
    }
    kit.download(url, tmp_path / "f", **options)
    kit.download(Request(url, **{**options, "mirrors": (f"{server.url}/g",)}), tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == BODY[10:20]
    assert server.requests[0] == server.requests[1]
    assert server.requests[0].headers["range"] == "bytes=10-19"


@pytest.mark.parametrize(
    "options",
    [
        {"checksum": "sha256:" + "0" * 64},
        {"mirrors": ["https://example.org/g"]},
        {"headers": {"a": "b"}},
        {"auth": ("u", "p")},
        {"resume": False},
        {"rate_limit": 1},
        {"max_bytes": 0},
        {"segments": 1},
        {"byte_range": (0, 1)},
        {"known": Version(etag='"v1"')},
        {"only": Version(etag='"v1"')},
        {"size": 1},
        {"label": "f"},
        {"key": "f"},
    ],
)
def test_a_request_and_options_beside_it(options: dict[str, Any], tmp_path: Path) -> None:
    """Which of both would count? Neither."""
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        with pytest.raises(ConfigError, match="options were given together with a Request"):
            kit.download(Request(URL), tmp_path / "f", **options)
        assert origin.requests == []


def test_the_name_of_a_request_counts(tmp_path: Path) -> None:
    """In the directory that `download` is given."""
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        origin.add(URL, "hello")
        assert kit.download(Request(URL, "other"), str(tmp_path) + "/").path == str(tmp_path / "other")
    assert (tmp_path / "other").read_text() == "hello"


class _PathOfBytes:
    def __fspath__(self) -> bytes:
        return b"f"


@pytest.mark.parametrize("path", ["a\0b", Path("a\0b"), "\ud800", b"f", _PathOfBytes(), 1, None, ""])
@pytest.mark.parametrize("method", ["scan", "hash_file", "hash_tree", "remove_tree", "watch", "transaction", "status"])
def test_what_is_no_path(method: str, path: Any) -> None:
    with Toolkit() as kit, pytest.raises(ConfigError, match="must be a path"):
        getattr(kit, method)(path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda kit: kit.move_many(["ab"]), "pairs must be a list of pairs of paths"),
        (lambda kit: kit.move_many([("a", 1)]), "pairs must be a list of pairs of paths"),
        (lambda kit: kit.move_many(1), "pairs must be a list of pairs of paths"),
        (lambda kit: kit.scan(".", include=[b"*.txt"]), "include must be a list of text"),
        (lambda kit: kit.scan(".", without=bytearray(b"x")), "without must be a list of text"),
        (lambda kit: kit.sync(URL, "tree", mirrors=[None]), "mirrors must be a list of text"),
        (lambda kit: kit.sync(URL, "tree", selection="*.txt"), "selection must be a .*Selection or None"),
        (lambda kit: kit.plan(URL, "tree", selection={"include": ()}), "selection must be a .*Selection or None"),
        (lambda kit: kit.publish(".", "site", version="1", sign_key=[b"k"]), "sign_key must be a path, or a list"),
        (
            lambda kit: kit.publish(".", "site", version="1", sign_key=Path("a\0b")),
            "sign_key must be a path, or a list",
        ),
        (lambda kit: kit.transaction("tree", wait_s="5"), "wait_s must be a number of seconds"),
        (lambda kit: kit.hash_file("f", chunk_bytes=1 << 63), "chunk_bytes must be less than 2\\*\\*63"),
        (lambda _: Config(workers=10**20), "workers must be less than 2\\*\\*63"),
        (lambda _: Config(workers=-(10**20)), "workers must be at least 1"),
        (lambda _: Config(headers=10**20), "headers must be a mapping"),  # type: ignore[arg-type]
        (lambda _: Toolkit.default_transport("x"), "config must be a perfkit.Config"),  # type: ignore[arg-type]
        (lambda _: Config.from_env(["PERFKIT_WORKERS=4"]), "environ must be a mapping of text to text"),  # type: ignore[arg-type]
        (lambda _: Config.from_env({"PERFKIT_WORKERS": 4}), "environ must be a mapping of text"),  # type: ignore[dict-item]
        (lambda _: FakeOrigin().publish(URL, ["a"], version="1"), "files must be a mapping"),  # type: ignore[arg-type]
        (lambda _: FakeOrigin().publish(URL, {"a": 1}, version="1"), "files must be a mapping"),  # type: ignore[dict-item]
        (lambda _: SharedLimits(1, 1).lease("a", 3), "use must be a Use"),  # type: ignore[arg-type]
        (lambda _: SharedLimits(1, 1).lease([], Use()), "holder must be text"),  # type: ignore[arg-type]
        (lambda _: Use(connections={"a": "1"}), "connections must be a mapping of text to whole"),  # type: ignore[dict-item]
        (lambda _: parse_size(5), "a size must be text; got 5"),  # type: ignore[arg-type]
        (lambda _: read_trees(None), "path must be a path"),  # type: ignore[arg-type]
        (lambda _: Server(3), "root must be a path"),  # type: ignore[arg-type]
        (lambda _: Server(".", bytes_per_s="5M"), "bytes_per_s must be a whole number or None"),  # type: ignore[arg-type]
        (lambda _: FakeOrigin().add(URL, None), "content must be bytes or text"),  # type: ignore[arg-type]
        (lambda _: FakeOrigin().fail(URL, times="2"), "times must be a whole number"),  # type: ignore[arg-type]
        (lambda kit: kit.watch(".").wait("5"), "timeout_s must be a number of seconds"),
        (lambda _: CallbackProgress(None), "function must be a function"),  # type: ignore[arg-type]
        (lambda _: Bars("log"), "stream must be a text stream"),  # type: ignore[arg-type]
        (lambda _: JsonLines("log"), "stream must be a text stream"),  # type: ignore[arg-type]
        (lambda _: Selection(include="*.txt"), "Selection.include must be a list of text"),  # type: ignore[arg-type]
        (lambda _: Selection(strip_components="1"), "strip_components must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_type_is_refused_at_once(
    call: Callable[[Any], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is in a list; nothing is requested or written before."""
    monkeypatch.chdir(tmp_path)
    with FakeOrigin() as origin, Toolkit(transport=origin) as kit:
        with pytest.raises(ConfigError, match=said):
            call(kit)
        assert origin.requests == []
    assert list(tmp_path.iterdir()) == []


def test_lists_may_be_iterators(tmp_path: Path) -> None:
    """Their items are checked, and still there afterwards."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.bin").write_text("b")
    with Toolkit() as kit:
        assert [entry.name for entry in kit.scan(tmp_path, include=iter(["*.txt"]))] == ["a.txt"]
        kit.move_many((each, tmp_path / f"{each.name}.old") for each in sorted(tmp_path.iterdir()))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.txt.old", "b.bin.old"]
    assert Selection(include=["*.txt"]) == Selection(include=("*.txt",))  # type: ignore[arg-type]


def test_more_arguments_than_a_method_has() -> None:
    with Toolkit() as kit, pytest.raises(TypeError, match="positional argument"):
        kit.status("tree", "more")  # type: ignore[call-arg]
