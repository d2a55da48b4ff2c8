"""Removes passwords and tokens from URLs, for logs and messages."""

from __future__ import annotations

import re

__all__ = ["redacted", "redacted_text"]

_USER = re.compile(r"^([a-z][a-z0-9+.-]*:)?//[^/?#]*@", re.IGNORECASE)  # a user name alone may be a token too
_VALUE = re.compile(r"=[^&;]*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
_AFTER = ":;,.)]"  # punctuation of the sentence rather than part of the URL


def redacted(url: str) -> str:
    """The URL with `***` in place of the user, the query values and the fragment.

    Any of them may be secret (signed links, `?token=`); scheme, host and path are enough to identify the URL.
    """
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
    return redacted(url) + match[0][len(url) :]
