"""Describes runs and files for people, in a few words."""

from __future__ import annotations

from perfkit.progress.meter import WAITING, FileProgress, Snapshot, State
from perfkit.progress.text import amount, clock, counted, sizes


def amounts(snapshot: Snapshot) -> tuple[str, str]:
    """The bytes of a run, and their speed; both empty for a stage that moves none, such as a copy by reflinks."""
    if not (snapshot.received_bytes or snapshot.total_bytes) and snapshot.phase != "download":
        return "", ""
    total = sizes(snapshot.received_bytes, snapshot.total_bytes, estimated=snapshot.total_estimated)
    return total, f"{amount(snapshot.speed_bytes_per_s)}/s"


def files_of(snapshot: Snapshot) -> str:
    """How many files are done, of how many, and how many failed: `3/8, 1 failed`; empty if files are not counted."""
    if _uncounted(snapshot):
        return ""
    total = f"/{snapshot.files_total}" if snapshot.files_total is not None else ""
    failed = f", {snapshot.files_failed} failed" if snapshot.files_failed else ""
    return f"{snapshot.files_done}{total}{failed}"


def _uncounted(snapshot: Snapshot) -> bool:
    return snapshot.phase != "download" and snapshot.files_total is None and not snapshot.files_done


def summary(snapshot: Snapshot) -> str:
    """The last line of a run; empty for a first request, which has no file yet."""
    if snapshot.phase == WAITING:
        return ""
    total, done = snapshot.files_total, snapshot.files_done
    unit = snapshot.unit
    files = counted(done, unit) if total in (None, done) else f"{done} of {counted(total or 0, unit)}"
    what = "" if snapshot.phase == "download" else f"{snapshot.phase}: "
    seconds, size, speed = snapshot.elapsed_s, "", ""
    if snapshot.received_bytes or (total in (None, done) and not what):  # else nothing is complete
        mean = (snapshot.received_bytes - snapshot.resumed_bytes) / seconds if seconds > 0 else 0.0
        size, speed = amount(snapshot.received_bytes), f", {amount(mean)}/s"
    done_text = ", ".join(part for part in ("" if _uncounted(snapshot) else files, size) if part)
    parts = [f"{what}{done_text} in {clock(seconds)}{speed}"]
    if snapshot.files_unchanged:
        parts.append(f"{snapshot.files_unchanged} unchanged")
    if snapshot.resumed_bytes:
        parts.append(f"{snapshot.files_resumed} resumed from {amount(snapshot.resumed_bytes)}")
    if snapshot.files_failed:
        reasons = ", ".join(f"{count} times {why}" if count > 1 else why for why, count in snapshot.failures if why)
        parts.append(f"{snapshot.files_failed} failed{f' ({reasons})' if reasons else ''}")
    if snapshot.files_cancelled:
        parts.append(f"{snapshot.files_cancelled} not finished")
    if snapshot.kept_bytes:
        parts.append(f"{amount(snapshot.kept_bytes)} kept in partial files")
    return "; ".join(parts)


def outcome(file: FileProgress) -> str:
    """What became of a file: its size and mean speed, or why it failed."""
    if file.state is State.FAILED:
        return f"failed: {file.reason}" if file.reason else "failed"
    if file.unchanged:
        return "unchanged"
    resumed = f", resumed from {amount(file.resumed_bytes)}" if file.resumed_bytes else ""
    return f"{amount(file.received_bytes)}  {amount(file.speed_bytes_per_s)}/s{resumed}"


def delay(file: FileProgress) -> str:
    """Why no bytes of a file come: it waits for a response, or for its next attempt; empty if they do."""
    if file.retry_in_s is not None:
        return f"try {file.retries + 1} in {clock(file.retry_in_s)}: {file.reason}"
    if file.state is State.ACTIVE and file.host and file.received_bytes == file.resumed_bytes:
        return f"waiting for {file.host}"
    return ""
