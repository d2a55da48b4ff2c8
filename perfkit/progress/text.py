"""Formats sizes, durations and names for people, in a known display width."""

from __future__ import annotations

from perfkit.progress.meter import Snapshot

__all__ = ["amount", "clip", "clock", "display_width", "fit", "printable", "summary"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


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


def summary(snapshot: Snapshot) -> str:
    """The last line of a run."""
    transferred = snapshot.received_bytes - snapshot.resumed_bytes
    speed = transferred / snapshot.elapsed_s if snapshot.elapsed_s > 0 else 0.0
    files = f"{snapshot.files_done} file{'' if snapshot.files_done == 1 else 's'}"
    what = "" if snapshot.phase == "download" else f"{snapshot.phase}: "
    parts = [f"{what}{files}, {amount(snapshot.received_bytes)} in {clock(snapshot.elapsed_s)}, {amount(speed)}/s"]
    if snapshot.resumed_bytes:
        parts.append(f"{amount(snapshot.resumed_bytes)} resumed")
    if snapshot.files_failed:
        parts.append(f"{snapshot.files_failed} failed")
    return "; ".join(parts)


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
    """The text in at most `width` columns, without control characters; `~` marks a cut."""
    text = printable(text)
    if display_width(text) <= width:
        return text
    kept, used = [], 0
    for character in text:
        used += _columns(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + ("~" if width > 0 else "")


def fit(text: str, width: int) -> str:
    """The text in exactly `width` columns."""
    clipped = clip(text, width)
    return clipped + " " * (width - display_width(clipped))
