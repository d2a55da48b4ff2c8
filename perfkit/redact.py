"""Removes passwords and tokens from URLs, for logs and messages."""

from __future__ import annotations

import re

_USER = re.compile(r"^([a-z][a-z0-9+.-]*:)?//[^/?#]*@", re.IGNORECASE)  # a user name alone may be a token too
_VALUE = re.compile(r"=[^&;]*")
# Without the scheme: searching for its beginning would take quadratic time. A quote may be part of a secret.
_URL = re.compile(r"""://(?:[^\s/?#]*@)?(?:[^\s'"<>]|['"<>](?![]\s,;:.)}>]|$))+""")
_SCHEME = re.compile(r"https?:/*|[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
_AFTER = ":;,.)]"  # punctuation of the sentence rather than part of the URL
_MOST = 500  # characters of an invalid address


def redacted(url: str) -> str:
    """The URL with `***` in place of the user, the query values and the fragment.

    Any of them may be secret (signed links, `?token=`); scheme, host and path are enough to identify the URL.
    """
    if "?" not in url and "//" not in url and "#" not in url:
        return url
    shown, _, fragment = _USER.sub(r"\1//***@", url).partition("#")
    path, question, query = shown.partition("?")
    if not query:
        path += question
    else:
        path += "?" + (_VALUE.sub("=***", query) if "=" in query else "***")
    return f"{path}#***" if fragment else path


def redacted_text(text: str) -> str:
    """The text with every URL in it redacted."""
    return _URL.sub(_redacted_match, text) if "://" in text else text


def _redacted_match(match: re.Match[str]) -> str:
    url = match[0].rstrip(_AFTER)
    return ":" + redacted(url[1:]) + match[0][len(url) :]


def masked(address: object) -> str:
    """An invalid URL without what may be a password: all before its last `@`, query values and the fragment."""
    text = str(address)
    scheme = _SCHEME.match(text)
    start = scheme[0] if scheme else ""
    _, at, after = text[len(start) :].rpartition("@")
    shown = redacted(f"{start}{'***@' if at else ''}{after}")
    return shown if len(shown) <= _MOST else f"{shown[:_MOST]}…"


def value_shown(value: object) -> str:
    """A value for a message; for a collection only its type, since something in it may be secret."""
    if isinstance(value, str):
        return repr(masked(value))
    return repr(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"
