"""What to download, and the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from operator import attrgetter, is_not
from urllib.parse import unquote

from perfkit.config import Auth, check_headers, check_type
from perfkit.downloads.checksums import Checksum, parse_checksum
from perfkit.downloads.http.semantics import NO_VERSION, Version
from perfkit.downloads.http.urls import origin_of, split_url
from perfkit.errors import ConfigError
from perfkit.filesystem.paths import is_url
from perfkit.minisign.public_keys import AnyKey, read_public_keys
from perfkit.redact import masked

LONGEST_LINE_BYTES = 64 << 10  # of a list of files
_VERSIONS = ("known", "only")
_LEAST = {"rate_limit": 1, "max_bytes": 0, "segments": 1, "retries": 0, "size": 0}


class _WithoutSecrets:
    """A `repr` that omits or masks what may be secret."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if value == each.default or each.name == "headers":
                continue
            if each.name in ("url", "home", "checksum"):
                value = masked(value)
            elif each.name in ("auth", "mirrors"):
                value = f"<{type(value).__name__}>"
            shown.append(f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, repr=False)
class Request(_WithoutSecrets):
    """One file to download.

    `name` is relative to the batch's directory, with forward slashes. Without one, the file is named after the server's
    Content-Disposition (RFC 6266), reduced to a safe basename, or else the last segment of the URL's path.

    With a `byte_range`, the file holds just those bytes of the resource, and `checksum` is theirs. If the server cannot
    send them (no ranges, too few bytes), that is an error, and the rest of the resource is not read. Any number of
    parts of one URL may be under way at once, each under its own name. No request asks whether a part changed (304).

    Raises:
        ConfigError: a URL is not an unambiguous http or https URL, or an option is invalid.
    """

    url: str
    name: str | None = None
    _: KW_ONLY
    checksum: str | None = None  # "algorithm:hex", such as "sha256:9f86d0…", or the URL of a checksum file
    mirrors: tuple[str, ...] = ()  # other URLs of the same file, tried in order when this one fails
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: Auth | None = None  # a pair for HTTP Basic or a requests.auth.AuthBase, for the origin of `home` only
    home: str | None = None  # the URL whose origin gets the secrets, such as that of a list with `url`; None: `url`
    resume: bool = True  # continue what an earlier run left; otherwise start over
    rate_limit: int | None = None  # bytes per second for this file, on top of the shared limit
    max_bytes: int | None = None  # a larger file is an error; None: as large as the server says
    segments: int | None = None  # the most connections for this file; None: `Config.segments`
    byte_range: tuple[int, int] | None = None  # start and end (exclusive) of the bytes wanted; None: the whole file
    public_keys: tuple[AnyKey, ...] = ()  # one must have signed the file, or the checksum file that `checksum` names
    known: Version | None = None  # that the caller has; if `url` still has it, the result is `unchanged`, with no file
    only: Version | None = None  # bytes of any other version of `url` are an error, as far as this one can be proven
    size: int | None = None  # in bytes, if the caller knows it: for progress, until the server says
    label: str | None = None  # what progress displays call the file; None: its name
    key: str | None = None  # identifies the file where its URL changes, such as by a signature; None: the URL
    retries: int | None = None  # per URL, if fewer than `Config.retries`

    def __post_init__(self) -> None:
        self._check_types()
        _ = self.promised  # raises if it is invalid
        for url in (self.url, *self.mirrors, *filter(None, (self.home, self.checksum_url))):
            if not isinstance(url, str):
                raise ConfigError(f"a URL must be text; got a {type(url).__name__}")
            origin_of(url)
        check_headers(self.headers)
        if self.byte_range is not None and not 0 <= self.byte_range[0] < self.byte_range[1]:
            raise ConfigError(f"byte_range must be a start and a later end, in bytes; got {self.byte_range!r}")

    def _check_types(self) -> None:
        if self.headers is None:  # as in requests
            object.__setattr__(self, "headers", {})
        if type(self.mirrors) is not tuple:
            if isinstance(self.mirrors, str) or not isinstance(self.mirrors, Iterable):
                raise ConfigError(f"mirrors must be a list of URLs; got {masked(self.mirrors)!r}")
            object.__setattr__(self, "mirrors", tuple(self.mirrors))
        if self.public_keys != ():  # None and "" are refused: they may be settings that are missing
            object.__setattr__(self, "public_keys", read_public_keys(self.public_keys))
            if self.byte_range is not None:
                raise ConfigError("public_keys were given with a byte_range, and a signature is one of the whole file")
        check_type("name", self.name, "str | None", secret=False)
        if any(map(is_not, _options_of(self), _DEFAULTS)):  # most requests have none
            self._check_options()

    def _check_options(self) -> None:
        for name, kind, default in _PLAIN:
            if (value := getattr(self, name)) is default:
                continue
            if name not in _VERSIONS:
                check_type(name, value, kind, secret=name == "auth")
            elif not isinstance(value, Version | None):
                raise ConfigError(f"{name} must be the version of a Download, or None; got {value!r}")
            if name in _LEAST and value is not None and value < _LEAST[name]:
                raise ConfigError(f"{name} must be at least {_LEAST[name]}, or None; got {value!r}")

    @property
    def checksum_url(self) -> str | None:
        """The URL of the checksum file, if `checksum` is one."""
        return self.checksum if self.checksum is not None and is_url(self.checksum) else None

    @property
    def promised(self) -> Checksum | None:
        """The checksum, if the request itself gives it."""
        return None if self.checksum is None or self.checksum_url else parse_checksum(self.checksum)

    @property
    def expected_bytes(self) -> int | None:
        """The size of the file, as far as the caller knows."""
        return self.size if self.byte_range is None else self.byte_range[1] - self.byte_range[0]

    def key_of(self, source: str) -> str | None:
        """The key that identifies the file, where it comes from this URL; None: the URL does."""
        return self.key if source == self.url else None

    @property
    def url_name(self) -> str:
        """The last segment of the URL's path, decoded; may be empty and is not yet safe."""
        return unquote(split_url(self.url)[2].partition("?")[0].rpartition("/")[2])


def split_line(line: str) -> tuple[str, str | None, str | None] | None:
    """URL, name and checksum of `URL[<TAB>NAME[<TAB>CHECKSUM]]`, a line of a list; None: it is empty, or a comment.

    Raises:
        ConfigError: there is more, or it is too long.
    """
    if len(line) > LONGEST_LINE_BYTES:
        raise ConfigError(f"it is longer than {LONGEST_LINE_BYTES} characters")
    url, name, checksum, *more = [*(part.strip() for part in line.split("\t")), "", "", ""]
    if any(more):
        raise ConfigError("it has more than a URL, a name and a checksum")
    return None if not url or url.startswith("#") else (url, name or None, checksum or None)


# Name, annotation and default of the options that are checked only if they are given.
_PLAIN = tuple(
    (each.name, str(each.type), each.default)
    for each in fields(Request)
    if each.name not in ("url", "name", "mirrors", "headers", "public_keys")
)
_options_of = attrgetter(*(name for name, _, _ in _PLAIN))
_DEFAULTS = tuple(default for _, _, default in _PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Download(_WithoutSecrets):
    """The result of one request.

    If `error` is None, the file at `path` is complete, and everything promised about it was verified.
    """

    url: str
    path: str
    bytes: int = 0  # size of the file
    bytes_received: int = 0  # body bytes received over the network, including discarded ones
    resumed_from: int = 0  # bytes already there from an earlier run
    segments: int = 0  # most connections used at once
    requests: int = 0  # including retries and segments; a request and the redirects it follows count as one
    retries: int = 0
    mirror: int = 0  # the number of the mirror used last; 0: the request's URL itself
    checksum: str | None = None  # "algorithm:hex" that was verified: the caller's, or the server's Repr-Digest
    seconds: float = 0.0
    length_known: bool = True  # False: only the end of the connection marked the end of the file
    unchanged: bool = False  # the file was already current (304, or the checksum held) and was left alone
    version: Version = NO_VERSION  # for `known`; empty for a part, without a response, or while it may be ambiguous
    error: Exception | None = None
