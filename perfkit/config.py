"""Settings: one frozen dataclass with units in the names, validated when it is created."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, UnionType
from typing import Any, Literal, TypeVar, get_args

from perfkit.errors import ConfigError
from perfkit.redact import value_shown

# User and password (HTTP Basic), or a `requests.auth.AuthBase`, which is called with the prepared request.
Auth = tuple[str, str] | Callable[[Any], Any]
T = TypeVar("T")
LocalChanges = Literal["keep", "overwrite", "refuse"]
_log = logging.getLogger(__name__)
_LOCAL_CHANGES = get_args(LocalChanges)
_FILES, _STREAMS = 8, 16  # at once, by default
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TOO_LARGE = 1 << 63  # for C code
_CENTURY_S = 100 * 365 * 86_400  # functions that wait accept little more
# Set for commands that the command line runs (`--check`, `--on-change`), which may run perfkit; and the password of a
# secret key.
_OTHER_VARIABLES = frozenset(
    {"PERFKIT_DEST", "PERFKIT_PREVIOUS_VERSION", "PERFKIT_SIGN_PASSWORD", "PERFKIT_STAGED", "PERFKIT_VERSION"}
)
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes from `4096`, `500K`, `5M`, `1.5G` (powers of 1024, as curl and wget read them).

    Raises:
        ConfigError: not text with a number and one of these suffixes, or not positive.
    """
    check_type("a size", text, "str", secret=False)
    cleaned = text.strip().upper().removesuffix("IB").removesuffix("B")
    suffix = cleaned[-1:] if cleaned[-1:] in _SUFFIXES else ""
    try:
        size = int(float(cleaned.removesuffix(suffix)) * _SUFFIXES[suffix])
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"{text!r} is not a size; write for example 500K, 5M or 1.5G")
    return size


def parse_seconds(text: str) -> float:
    """Seconds from `1.5`, `90s`, `2m`, `1h` or `2d`.

    Raises:
        ConfigError: not a number with one of these suffixes; negative, or centuries.
    """
    cleaned = text.strip().lower()
    suffix = cleaned[-1:] if cleaned[-1:] in _SECONDS else ""
    try:
        seconds = float(cleaned.removesuffix(suffix)) * _SECONDS[suffix]
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < _CENTURY_S:
        raise ConfigError(f"{text!r} is not a time; write for example 1.5, 90s, 2m, 1h or 2d")
    return seconds


def parse_optional_seconds(text: str | None) -> float | None:
    """As `parse_seconds`; None for an option that was not given."""
    return None if text is None else parse_seconds(text)


def parse_auth(text: str) -> tuple[str, str]:
    """User and password from `USER:PASSWORD`.

    Raises:
        ConfigError: there is no colon.
    """
    user, colon, password = text.partition(":")
    if not colon:
        raise ConfigError("user and password must be given as USER:PASSWORD")
    return user, password


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONDITIONS = {"if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
_SET_BY_PERFKIT = {*_CONDITIONS, "range", "content-length", "transfer-encoding", "connection"}
_AT_LEAST_1 = ("segments", "min_segment_bytes", "connections_per_host", "buffer_bytes", "keep_generations", "max_files")
_AT_LEAST_0 = ("stall_bytes_per_s", "retries", "backoff_base_s", "backoff_cap_s", "retry_after_cap_s", "max_redirects")


def check_headers(headers: Mapping[str, str]) -> None:
    """Check that these headers can be sent with a request.

    Raises:
        ConfigError: a name is not a token (RFC 9110 section 5.6.2) or is set by perfkit itself; a value is not text, or
            contains a line break or a character that is not in Latin-1.
    """
    if not isinstance(headers, Mapping):
        raise ConfigError(f"headers must be a mapping of names to values; got a {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            # Not shown: the name may be a value, and secret.
            raise ConfigError(
                "a header has an invalid name: it must be a token, such as X-Token (RFC 9110 section 5.1)"
            )
        if name.lower() in _SET_BY_PERFKIT:
            raise ConfigError(f"the header {name!r} is set by perfkit; leave it out")
        if not isinstance(value, str) or any(character in "\r\n\0" or character > "\xff" for character in value):
            raise ConfigError(f"the value of the header {name!r} must be one line of Latin-1 text (RFC 9110, 5.5)")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a `Toolkit`. Every field has a default that suits most callers.

    Raises:
        ConfigError: a value is out of range; raised when the object is created.
    """

    # Concurrency
    workers: int | None = None  # most files and most requests at once; None is 8 files and up to 16 requests
    segments: int = 16  # the most connections for one file; 1 turns segments off
    min_segment_bytes: int = 256 << 10  # a range below twice this is split only if distant or slow
    connections_per_host: int = 16  # browsers make 6, or one for HTTP/2; aria2 at most 16
    adaptive: bool = True  # start with few connections and add more while that is faster
    buffer_bytes: int = 1 << 20  # per worker; more than four share the memory of four

    # Bandwidth
    rate_limit: int | None = None  # bytes per second for all transfers together; None is unlimited

    # Time-outs
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0  # silence of the server, in headers and body
    stall_bytes_per_s: int = 1024  # slower than this over stall_window_s, and the segment is requested again
    stall_window_s: float = 30.0

    # Retries
    retries: int = 5  # failures in a row without progress, per file and origin
    backoff_base_s: float = 0.5  # full jitter: a wait is uniform in 0 .. base * 2**failures
    backoff_cap_s: float = 30.0
    retry_after_cap_s: float = 120.0  # a server that asks for a longer wait ends the transfer

    # Requests
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: Auth | None = field(default=None, repr=False)  # a pair for HTTP Basic or a requests.auth.AuthBase; else netrc
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)  # as requests takes them
    trust_env: bool = True  # proxies, netrc and CA bundle from the environment, as requests does
    verify: bool | str = True  # False accepts any certificate; a path is used like `ca_bundle`, as in requests
    ca_bundle: str | None = None  # PEM file or directory instead of certifi's; "system": what the system trusts
    client_cert: str | tuple[str, str] | None = None  # PEM file with both, or certificate and key
    max_redirects: int = 20
    allow_downgrade: bool = False  # follow a redirect from https to http

    # On disk
    keep_partial: bool = True  # keep a partial file when a transfer ends early
    durable: bool = False  # fsync each file before it is renamed into place: it survives a power cut, not just a crash

    # Updates
    local_changes: str = "keep"  # what `sync` does with edited files: keep a copy, overwrite, or refuse the update
    check_contents: bool = False  # hash every file of the tree in each sync, even if its size and times are unchanged
    keep_generations: int = 5  # before the current one, that `rollback` can restore
    max_files: int = 100_000  # of a release or a list, since memory grows with them
    trust_other_owners: bool = False  # use a tree whose .perfkit belongs to another user

    def __post_init__(self) -> None:
        self._check_types()
        _require(self.workers is None or self.workers >= 1, "workers", "at least 1, or None", self.workers)
        for name in _AT_LEAST_1:
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("connect_timeout_s", "read_timeout_s", "stall_window_s"):
            _require(getattr(self, name) > 0, name, "more than 0", getattr(self, name))
        for name in _AT_LEAST_0:
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        check_headers(self.headers)
        _require(not self.ca_bundle or self.verify is True, "verify", "True with a ca_bundle", self.verify)
        _require(self.local_changes in _LOCAL_CHANGES, "local_changes", f"one of {_LOCAL_CHANGES}", self.local_changes)
        if self.rate_limit is not None:
            _require(self.rate_limit > 0, "rate_limit", "more than 0, or None for no limit", self.rate_limit)

    @property
    def most_files(self) -> int:
        """How many files may be under way at once, if they take long."""
        return self.workers or _FILES

    @property
    def most_streams(self) -> int:
        """How many requests may be under way at once."""
        return self.workers or _STREAMS

    @property
    def timeouts_s(self) -> tuple[float, float]:
        """The time-outs of each request: for a connection, and for more of the response, head or body."""
        return self.connect_timeout_s, self.read_timeout_s

    def _check_types(self) -> None:
        for name in ("headers", "proxies"):
            if getattr(self, name) is None:  # as in requests
                object.__setattr__(self, name, {})
        for name in ("verify", "ca_bundle"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for item in dataclasses.fields(self):
            check_type(f"Config.{item.name}", getattr(self, item.name), str(item.type), secret=not item.repr)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, /, **overrides: Any) -> Config:
        """A Config from `PERFKIT_<FIELD>` variables, such as `PERFKIT_WORKERS=4`; an empty one counts as unset.

        Formats: counts `8`; sizes and rates `500K`, `5M`; times in seconds, `1.5`, or `90s`, `2m`, `1h`, `2d`; switches
        `1`, `true`, `yes`, `on` and their opposites; `headers` and `proxies` a JSON object of strings; `auth`
        `user:password`; `client_cert` a path, or `CERT:KEY`. `none` stands for None where that is allowed.

        Args:
            environ: by default `os.environ`.
            overrides: fields that take precedence over the environment.

        Raises:
            ConfigError: the value of a variable is invalid; the message has the variable's name. A variable that
                matches no field is only logged as a warning: Kubernetes names variables after services.
        """
        check_type("environ", environ, "Mapping[str, str] | None", secret=True)
        fields = {f"PERFKIT_{item.name.upper()}": item for item in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for variable, text in (os.environ if environ is None else environ).items():
            if not variable.startswith("PERFKIT_") or not text or variable in _OTHER_VARIABLES:
                continue
            if variable not in fields:
                import difflib

                near = difflib.get_close_matches(variable, fields, n=1, cutoff=0.8)
                hint = f"; did you mean {near[0]}?" if near else ""
                _log.warning("%s is set, and perfkit has no such setting%s", variable, hint)
                continue
            values[fields[variable].name] = _read(cls, variable, text, fields[variable])
        return cls(**{**values, **overrides})


def check_type(name: str, value: object, kind: str, *, secret: bool) -> None:
    """Check that a setting or an option has the type of its annotation.

    Args:
        kind: the annotation.
        secret: whether the value must not be shown.

    Raises:
        ConfigError: it has another type.
    """
    if reason := _misfit(value, kind, secret=secret):
        raise ConfigError(f"{name} {reason}")


def checks_arguments(of: type[T]) -> type[T]:
    """Make a class and its public methods check the types of their arguments, by their annotations, when called.

    Raises:
        ConfigError: by the class or a method: an argument has another type.
    """
    for name, method in list(vars(of).items()):
        if isinstance(method, FunctionType) and (name == "__init__" or not name.startswith("_")):
            setattr(of, name, _checked(method))
    return of


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    code = inspect.unwrap(method).__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    kinds = {name: method.__annotations__.get(name, "") for name in names}
    kinds = {name: kind for name, kind in kinds.items() if kind.removesuffix(" | None") in _TYPES}

    def accept(name: str, value: Any) -> Any:
        if name not in kinds:
            return value
        if "Iterable[" in kinds[name] and _is_list(value):
            value = tuple(value)  # checking the items of an iterator would use it up
        check_type(name, value, kinds[name], secret=not isinstance(value, int | float))
        return value

    @functools.wraps(method)
    def checked(*args: Any, **options: Any) -> Any:
        accepted = [accept(name, value) for name, value in zip(names, args, strict=False)]
        options = {name: accept(name, value) for name, value in options.items()}
        return method(*accepted, *args[len(names) :], **options)

    return checked


def convert(of: type[Any], name: str, value: object) -> object:
    """A value of a settings file, in the type of this field of a dataclass, such as `Config`: sizes and times may be
    text, pairs lists, paths `Path` objects.

    Raises:
        ConfigError: it has another type; the message does not name the field.
    """
    (item,) = (each for each in dataclasses.fields(of) if each.name == name)
    kind = str(item.type)
    if isinstance(value, str) and _is_size(name):
        return parse_size(value)
    if isinstance(value, str) and kind == "float":
        return parse_seconds(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, list):
        value = tuple(value)
    if reason := _misfit(value, kind, secret=not item.repr):
        raise ConfigError(reason)
    return value


def _misfit(value: object, kind: str, *, secret: bool) -> str:
    """Why a value does not match the annotation `kind`; empty if it does."""
    holds, form = _TYPES[kind.removesuffix(" | None")]
    optional = kind.endswith(" | None")
    if (value is None and optional) or holds(value):
        return "must be less than 2**63" if isinstance(value, int) and value >= _TOO_LARGE else ""
    shown = f"a {type(value).__name__}" if secret else value_shown(value)
    return f"must be {form}{' or None' if optional else ''}; got {shown}"


def _is_time(value: object) -> bool:
    """A time-out of more than a century would overflow in the kernel's structures."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _CENTURY_S


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, str) for each in value)


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | os.PathLike)


def _is_text_list(value: object) -> bool:
    return _is_list(value) and all(isinstance(each, str) for each in value)  # type: ignore[attr-defined]


def _is_path(value: object) -> bool:
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
        return isinstance(text, str) and bool(text) and b"\0" not in os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        return False


def _is_path_pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_path, value))


def _is_mapping(value: object, of: type | UnionType) -> bool:
    """Whether it maps text to values of this type."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(each, of) for each in value.values())
    )


def _is_pair(value: object) -> bool:
    return _is_texts(value) and len(value) == 2  # type: ignore[arg-type]


def _is_range(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_whole, value))


_A_PATH = (_is_path, "a path or URL (not empty, and without NUL)")
_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {  # by the type of a field: its check, and its name in words
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (_is_whole, "a whole number"),
    "float": (_is_time, "a number of seconds, less than a century"),
    "str": (lambda value: isinstance(value, str), "text"),
    # An empty path, of a variable that is not set perhaps, would turn verification off, as it does in requests.
    "bool | str": (
        lambda value: isinstance(value, bool) or (isinstance(value, str) and value != ""),
        "True, False or the path of a CA bundle",
    ),
    "Mapping[str, str]": (lambda value: _is_mapping(value, str), "a mapping of text to text"),
    "Mapping[str, bytes | str]": (lambda value: _is_mapping(value, bytes | str), "a mapping of text to bytes or text"),
    "Mapping[str, int]": (lambda value: _is_mapping(value, int), "a mapping of text to whole numbers"),
    "Mapping[str, float]": (lambda value: _is_mapping(value, int | float), "a mapping of text to numbers"),
    "Auth": (lambda value: _is_pair(value) or callable(value), "a (user, password) pair or a requests.auth.AuthBase"),
    "str | tuple[str, str]": (lambda value: isinstance(value, str) or _is_pair(value), "a path or a pair of paths"),
    "tuple[int, int]": (_is_range, "a start and a later end, in bytes"),
    "tuple[str, ...]": (_is_texts, "a list of text"),
    "Iterable[str]": (_is_text_list, "a list of text"),
    "Collection[str]": (_is_text_list, "a list of text"),
    "Path": _A_PATH,
    "str | os.PathLike[str]": _A_PATH,
    "Path | Iterable[Path]": (
        lambda value: _is_path(value) or (isinstance(value, tuple) and all(map(_is_path, value))),
        "a path, or a list of paths",
    ),
    "Iterable[tuple[Path, Path]]": (
        lambda value: isinstance(value, tuple) and all(map(_is_path_pair, value)),
        "a list of pairs of paths",
    ),
    "Check": (callable, "a function"),
    "Callable[[Snapshot], object]": (callable, "a function"),
    "TextIO": (lambda value: hasattr(value, "write"), "a text stream, such as an open file"),
    "bytes | str": (lambda value: isinstance(value, bytes | str), "bytes or text"),
    "Config": (lambda value: isinstance(value, Config), "a perfkit.Config"),
    "Progress": (
        lambda value: hasattr(value, "update") and hasattr(value, "finish"),
        "an object with update() and finish(), such as Bars() or CallbackProgress(function)",
    ),
    "SessionSource": (
        lambda value: hasattr(value, "mount") or callable(value),
        "a requests.Session, or a callable that makes one",
    ),
    "Callable[[Config], Transport]": (callable, "a callable that makes a Transport"),
    "Use": (lambda value: hasattr(value, "connections"), "a Use"),
    "Selection": (lambda value: hasattr(value, "strip_components"), "a perfkit.archives.members.Selection"),
    "LimitStore": (lambda value: hasattr(value, "lease") and hasattr(value, "release"), "a LimitStore"),
}


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"Config.{name} must be {rule}; got {value!r}")


def _read(cls: type[Config], variable: str, text: str, item: dataclasses.Field[Any]) -> object:
    """The value of a field from a variable, validated here so that errors can name the variable."""
    shown = variable if not item.repr else f"{variable}={text!r}"  # fields without repr are secret
    kind = str(item.type)
    optional = kind.endswith(" | None")
    if optional and text.lower() == "none":
        return None
    kind = kind.removesuffix(" | None")
    read, form = _READERS["size" if kind == "int" and _is_size(item.name) else kind]
    try:
        value: Any = read(text.strip())
    except (ValueError, KeyError):
        raise ConfigError(f"{shown} is not {form}{' or none' if optional else ''}") from None
    try:
        cls(**{item.name: value})
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from None
    return value


def _is_size(name: str) -> bool:
    """Whether the field of this name may be written as `parse_size` reads it."""
    return "bytes" in name or name == "rate_limit"


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[
        text.lower()
    ]


def _size(text: str) -> int:
    return 0 if text == "0" else parse_size(text)


def _verify(text: str) -> bool | str:
    try:
        return _switch(text)
    except KeyError:
        if os.sep in text or os.path.exists(text):
            return text
        raise


def _certificate(text: str) -> str | tuple[str, str]:
    certificate, separator, key = text.partition(os.pathsep)
    return (certificate, key) if separator else certificate


# By the type of the field: the function that reads a variable, and the format in words.
_READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "bool": (_switch, "1 or 0, true or false, yes or no, on or off"),
    "int": (int, "a whole number"),
    "size": (_size, "a number of bytes, such as 500K or 5M"),
    "float": (parse_seconds, "a number of seconds, such as 1.5, 90s or 2m"),
    "str": (str, "text"),
    "Mapping[str, str]": (json.loads, "a JSON object whose values are strings"),
    "Auth": (parse_auth, "user:password"),
    "bool | str": (_verify, "1 or 0, true or false, yes or no, on or off, or the path of a CA bundle"),
    "str | tuple[str, str]": (_certificate, f"a path, or two with {os.pathsep!r} between them"),
}
