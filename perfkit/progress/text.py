"""Formats sizes, durations and names for people, in a known display width."""

from __future__ import annotations

import errno

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_REMEDIES = {
    errno.EACCES: "run it as the owner, or change the permissions",
    errno.EPERM: "run it as the owner, or change the permissions",
    errno.EEXIST: "remove or rename what is there",
    errno.ELOOP: "remove the symbolic link",
    errno.EROFS: "mount it writable",
    errno.ENOSPC: "free some space",
    errno.EFBIG: "its file system, or a limit (ulimit -f), allows no larger file",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the device may be failing: see the kernel's log",
}


def described(error: BaseException) -> str:
    """What failed, on what, and for system errors also what to do, where that is known."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if isinstance(error, FileNotFoundError) and error.filename is None:  # as os.getcwd() raises it
        return "the current directory was removed; change to another one"
    text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    remedy = None if "; " in error.strerror else _REMEDIES.get(error.errno or 0)
    return f"{text}; {remedy}" if remedy else text


def amount(size: float) -> str:
    """`1.5 MiB`, in powers of 1024."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def clock(seconds: float | None) -> str:
    """`1:05`, `2:03:00`, `3d 04h`; `-:--` if unknown."""
    if seconds is None or seconds > 99 * 86400:
        return "-:--"
    whole = int(seconds + 0.5)
    if whole >= 86400:
        return f"{whole // 86400}d {whole % 86400 // 3600:02}h"
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}"


def share_text(share: float | None) -> str:
    """`45%`, rounded down; nothing if unknown."""
    return "" if share is None else f"{int(100 * share + 1e-9)}%"


def sizes(received_bytes: int, total_bytes: int | None, *, estimated: bool = False) -> str:
    """`19.1/47.8 MiB`; an estimated total is marked: `19.1/47.8+ MiB`."""
    if total_bytes is None:
        return amount(received_bytes)
    total, unit = amount(total_bytes).split()
    scale = 1024 ** _UNITS.index(unit)
    received = f"{received_bytes}" if scale == 1 else f"{received_bytes / scale:.1f}"
    return f"{received}/{total}{'+' if estimated else ''} {unit}"


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def display_width(text: str) -> int:
    """The width in terminal columns: two for wide characters, zero for combining ones (Unicode Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    import unicodedata

    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def printable(text: str) -> str:
    """The text with control characters replaced: names and reasons come from servers."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


def clip(text: str, width: int) -> str:
    """The text in at most `width` columns, without control characters; an ellipsis marks a cut."""
    text = printable(text)
    return text if display_width(text) <= width else _first(text, width - 1) + "…" * (width > 0)


def shorten(name: str, width: int) -> str:
    """A name in at most `width` columns: the middle is left out, the extension stays."""
    name = printable(name)
    if display_width(name) <= width:
        return name
    _, dot, extension = name.rpartition(".")
    end = max((width - 1) // 2, min(len(dot + extension), width - 2) if dot else 0)
    last = _first(name[::-1], end)[::-1]
    return f"{_first(name, width - 1 - display_width(last))}…{last}" if width > 4 else clip(name, width)


def _first(text: str, width: int) -> str:
    """As much of the text as fits into `width` columns."""
    used = 0
    for at, character in enumerate(text):
        used += _columns(character)
        if used > width:
            return text[:at]
    return text


def fit(text: str, width: int) -> str:
    """A name in exactly `width` columns."""
    clipped = shorten(text, width)
    return clipped + " " * (width - display_width(clipped))
