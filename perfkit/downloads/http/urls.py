"""One parser of URLs for every decision about them, so that trust, limits and proxies match what is sent.

Programs read odd URLs in different ways: with a backslash, a control character or a stray bracket in it, urllib.parse,
urllib3 and browsers find different hosts. Such a URL is refused.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from urllib.parse import quote, unquote, urlsplit

from perfkit.errors import ConfigError
from perfkit.redact import masked

Origin = tuple[str, str, int]  # scheme, host, port

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE | re.ASCII)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(
    r"(?:([^][\\]*)@)?(\[[0-9a-f:.]+(?:%[0-9a-z._~%-]+)?\]|[a-z0-9_~-][a-z0-9._~-]*)(?::([0-9]*))?",
    re.IGNORECASE | re.ASCII,
)
_UNQUOTED = re.compile(r"[^!$&'()*+,;=:A-Za-z0-9._~%-]|%(?![0-9A-Fa-f]{2})")  # in a user and password
# What a target never contains (RFC 3986 section 3.3 and 3.4).
_INVALID = re.compile(r"[^!$&'()*+,;=:@/?A-Za-z0-9._~%-]|%(?![0-9A-Fa-f]{2})")
_DEFAULT_PORTS = {"http": 80, "https": 443}


# Query parameters of signed URLs, in lower case: those that identify one, and others that change with the signature.
_SIGNATURES = {
    # https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    "x-amz-signature": "x-amz-algorithm x-amz-credential x-amz-date x-amz-expires x-amz-signedheaders "
    "x-amz-security-token",
    # https://cloud.google.com/storage/docs/authentication/signatures
    "x-goog-signature": "x-goog-algorithm x-goog-credential x-goog-date x-goog-expires x-goog-signedheaders",
    # https://learn.microsoft.com/rest/api/storageservices/create-service-sas, and -account-, -user-delegation-
    "sig sv": "ss srt sr st se sp sip spr si skoid sktid skt ske sks skv saoid suoid scid sdd ses",
    # https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/private-content-signed-urls.html
    "signature key-pair-id": "expires policy hash-algorithm",
    "signature awsaccesskeyid": "expires x-amz-security-token",  # S3, version 2
    "signature googleaccessid": "expires",  # Google Cloud Storage, version 2
}


@functools.lru_cache(maxsize=64)  # a request needs the same one several times
def origin_of(url: str) -> Origin:
    """Scheme, host and port (RFC 6454 section 4); the host in lower case and ASCII, without brackets.

    Raises:
        ConfigError: it is not an unambiguous http or https URL.
    """
    scheme, authority, _ = split_url(url)
    _, host, port = _read(url, authority)
    return scheme, host, port or _DEFAULT_PORTS[scheme]


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's (RFC 6761 section 6.3, RFC 6890)."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=64)
def as_sent(url: str) -> str:
    """The URL as it is sent, without its fragment. A valid target (RFC 3986) keeps its spelling, since a signed link
    breaks when its `%7e` or its empty `?` is normalized; others are quoted as requests does.

    Raises:
        ConfigError: as `origin_of`.
    """
    scheme, authority, target = split_url(url)
    user, host, port = _read(url, authority)
    if _INVALID.search(target):
        target = _quoted(target)
    place = f"[{host}]" if ":" in host else host
    login = "" if user is None else f"{_UNQUOTED.sub(lambda found: quote(found[0], safe=''), user)}@"
    return f"{scheme}://{login}{place}{'' if port is None else f':{port}'}{target}"


@functools.lru_cache(maxsize=64)
def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, authority, and the target of a request for the URL (RFC 9112 section 3.2.1).

    Raises:
        ConfigError: it is not an http or https URL.
    """
    found = _URL.match(url)
    if found is None:
        raise ConfigError(f"{masked(url)!r} is not an http or https URL")
    if _CONTROLS.search(url):
        raise ConfigError(f"{masked(url)!r} is not an http or https URL: it contains control characters")
    scheme, authority, target = found.groups()
    return scheme.lower(), authority, target if target.startswith("/") else f"/{target}"


def signature_url(url: str) -> str:
    """The URL of a file's signature: beside the file, named as minisign does, with the same query."""
    path, question, query = url.partition("#")[0].partition("?")
    return f"{path}.minisig{question}{query}"


def credentials_in(url: str) -> tuple[str, str] | None:
    """User and password of `https://user:password@host/`; a user alone may be a token."""
    login = split_url(url)[1].rpartition("@")[0]
    user, _, password = login.partition(":")
    return (unquote(user), unquote(password)) if login else None


def unsigned(url: str) -> str:
    """The part of a URL that stays the same when it is signed again: as sent, without user, password and the query
    parameters of a signature for S3, Google Cloud Storage, Azure or CloudFront.
    """
    scheme, authority, target = split_url(as_sent(url))
    if signing := _signing(target):
        path, _, query = target.partition("?")
        query = "&".join(each for each in query.split("&") if _name(each) not in signing)
        target = f"{path}?{query}" if query else path
    return f"{scheme}://{authority.rpartition('@')[2]}{target}"


def is_signed(url: str) -> bool:
    """Whether the URL has such a signature, and so expires."""
    return bool(_signing(split_url(url)[2]))


def _signing(target: str) -> set[str]:
    """The names of the signature's parameters; empty if the target is not signed."""
    query = target.partition("?")[2]
    if not query:
        return set()
    names = {_name(each) for each in query.split("&")}
    for marks, others in _SIGNATURES.items():
        if names.issuperset(marks.split()):
            return {*marks.split(), *others.split()}
    return set()


def _name(parameter: str) -> str:
    return unquote(parameter.partition("=")[0]).lower()


def _read(url: str, authority: str) -> tuple[str | None, str, int | None]:
    """User and password as spelt, host, and port of an authority (RFC 3986 section 3.2)."""
    try:
        return _read_authority(authority)
    except ValueError as error:
        raise ConfigError(f"{masked(url)!r} is not an http or https URL: {error}") from None


@functools.lru_cache(maxsize=1024)
def _read_authority(authority: str) -> tuple[str | None, str, int | None]:
    login, at, place = authority.rpartition("@")
    place = place if place.isascii() else _in_ascii(place)
    found = _AUTHORITY.fullmatch(f"{login}{at}{place}")
    if found is None or _is_refused(authority):
        raise ValueError("its host or port is not valid")
    user, host, digits = found.groups()
    if host.startswith("["):
        host = host[1:-1]
        ipaddress.IPv6Address(host.partition("%")[0])
    name, percent, zone = host.partition("%")  # the zone of an address may be in capitals (RFC 6874)
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 1 << 16:
        raise ValueError("its port is out of range")
    return user, f"{name.lower()}{percent}{zone}", port


def _is_refused(authority: str) -> bool:
    """Whether urllib.parse refuses it: it knows which non-ASCII characters other programs take for delimiters."""
    try:
        urlsplit(f"http://{authority}")
    except ValueError:
        return True
    return False


def _in_ascii(place: str) -> str:
    """An internationalized host name (RFC 5891), as requests sends it."""
    import idna  # a dependency of requests

    host, colon, port = place.partition(":")
    try:
        return f"{idna.encode(host, uts46=True).decode()}{colon}{port}"
    except UnicodeError:
        raise ValueError("its host name is not valid") from None


def _quoted(target: str) -> str:
    import requests  # takes longer to load than most commands that need no network

    request = requests.PreparedRequest()
    try:
        request.prepare_url(f"http://host{target}", None)
    except ValueError as error:
        raise ConfigError("the path of a URL is not valid text") from error
    return str(request.url).removeprefix("http://host")
