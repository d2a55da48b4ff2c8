"""Names: which are valid on every file system, and stay inside their root."""

from __future__ import annotations

import itertools
import os
import re
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from perfkit.errors import ConfigError, UnsafePathError
from perfkit.redact import redacted

_COMPONENT_BYTES = 255  # NAME_MAX of Linux, macOS and NTFS
_NAME_BYTES = 4096  # PATH_MAX of Linux
_BACKUP_SUFFIX = ".perfkit-local"
_BATCH = 512  # names
_BASENAME_BYTES = 200  # leaves room for our suffixes
PRIVATE_DIR = ".perfkit"
_ENCODING = sys.getfilesystemencoding()
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"]
)
_SHORT_NAME = re.compile("(?:perfki|pe[0-9a-f]{4})~[0-9]+", re.IGNORECASE)
_IGNORABLE = re.compile(  # Default_Ignorable_Code_Point of Unicode 16 (DerivedCoreProperties.txt)
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
# C1 controls, which terminals obey, line separators, and bidirectional controls, which can show `txt.exe` as `exe.txt`.
_DECEPTIVE = re.compile("[\x80-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def check_name(name: str) -> str:
    """Returns `name`, if it is a relative name with forward slashes that is valid on all common file systems.

    Raises:
        UnsafePathError: it is empty or absolute; a component is empty, `.`, `..`, too long, a Windows device, or ends
            in a dot or space; it contains control characters, a backslash, a colon or another character that Windows
            reserves; it is in perfkit's own directory; it is not valid Unicode, or the locale can't encode it.
    """
    if not isinstance(name, str) or not name:
        raise UnsafePathError(str(name), "it is empty")
    if name.startswith("/"):
        raise UnsafePathError(name, "it is absolute; names are relative to their root")
    if match := _FORBIDDEN.search(name):
        raise UnsafePathError(name, f"the character {match.group()!r} is not portable")
    if len(name.encode(errors="surrogatepass")) > _NAME_BYTES:
        raise UnsafePathError(f"{name[:80]}...", f"it is longer than {_NAME_BYTES} bytes")
    components = name.split("/")
    for component in components:
        _check_component(name, component)
    if _is_private(components[0]):
        raise UnsafePathError(name, f"{PRIVATE_DIR} is reserved for perfkit")
    return name


def _is_private(component: str) -> bool:
    """Whether this is `.perfkit`, or a name that some file system treats as the same.

    APFS, NTFS and FAT ignore case; HFS+ and ext4 with casefold ignore ignorable characters; NTFS and FAT give it a
    short name, PERFKI~1, or one with a hash from the fifth such name on. (git refuses the same variants of `.git`.)
    """
    return fold_name(component) == PRIVATE_DIR or _SHORT_NAME.fullmatch(component) is not None


def _check_component(name: str, component: str) -> None:
    if component in ("", ".", ".."):
        raise UnsafePathError(name, f"a component is {component!r}")
    if component[-1] in ". ":
        raise UnsafePathError(name, f"{component!r} ends in a dot or a space")
    if component.partition(".")[0].rstrip().upper() in _DEVICES:
        raise UnsafePathError(name, f"{component!r} is a device on Windows")
    try:
        length = len(component.encode())
    except UnicodeEncodeError:
        raise UnsafePathError(name, "it is not valid Unicode") from None
    if length > _COMPONENT_BYTES:
        raise UnsafePathError(name, f"a component is longer than {_COMPONENT_BYTES} bytes")
    if _ENCODING != "utf-8":  # a locale's, such as ISO 8859-1
        try:
            component.encode(_ENCODING)
        except UnicodeEncodeError:
            why = f"the locale's encoding, {_ENCODING}, lacks {component!a}; set PYTHONUTF8=1"
            raise UnsafePathError(name, why) from None


def most_directories(files: int) -> int:
    """How many directories a tree with this many files may have: far more of them would be an attack on the disk."""
    return 10_000 + 4 * files


class FoldedNames:
    """The folded names of a tree's files, as hashes, to rule out cheaply that any two collide."""

    def __init__(self) -> None:
        self._files = [array("q") for _ in range(256)]  # by the last byte; one set would take ten times the memory
        self._directories: set[int] = set()

    def add(self, names: Iterable[str], *, most: int) -> bool:
        """Add names; returns False if they need more directories than `most`."""
        parents = set()
        for name in names:
            key = hash(name)
            self._files[key & 255].append(key)
            parents.add(name.rpartition("/")[0])
        for parent in parents:
            while parent and hash(parent) not in self._directories:
                self._directories.add(hash(parent))
                parent = parent.rpartition("/")[0]
            if len(self._directories) > most:
                return False
        return True

    def may_collide(self) -> bool:
        """Whether two files may have the same name, or a file that of a directory."""
        files = self._files
        return any(len({*some}) < len(some) or not self._directories.isdisjoint(some) for some in files)


def check_names(names: Collection[str]) -> None:
    """Check that names are safe, and can all exist in one tree on any file system.

    Raises:
        UnsafePathError: `check_name` refuses one; two differ only in case or Unicode normalisation; one is the
            directory of another; they need far more directories than there are files.
    """
    for error in name_errors(names):
        raise error


def name_errors(names: Collection[str]) -> Iterator[UnsafePathError]:
    """The errors that `check_names` finds in these names."""
    if _are_safe(names):
        return
    files: dict[str, str] = {}
    directories: dict[str, str] = {}
    for name in names:
        try:
            folded = fold_name(check_name(name))
        except UnsafePathError as error:
            yield error
            continue
        if folded in files:
            same = files[folded]
            yield UnsafePathError(name, f"it collides with {same!r} where case or Unicode normalisation is ignored")
            continue
        files[folded] = name
        parent = folded.rpartition("/")[0]
        while parent and parent not in directories:
            directories[parent] = name
            parent = parent.rpartition("/")[0]
        if len(directories) > (most := most_directories(len(files))):
            yield UnsafePathError(name, f"{len(files)} files have more than {most} directories")
            return
    for folded, name in files.items():
        if folded in directories:
            yield UnsafePathError(name, f"it is both a file and the directory of {directories[folded]!r}")


def _are_safe(names: Collection[str]) -> bool:
    """Whether `check_names` finds nothing, as far as hashes show; in little memory."""
    folded, most, left = FoldedNames(), most_directories(len(names)), iter(names)
    try:
        while batch := [fold_name(check_name(name)) for name in itertools.islice(left, _BATCH)]:
            if not folded.add(batch, most=most):
                return False
    except UnsafePathError:
        return False
    return not folded.may_collide()


def fold_name(name: str) -> str:
    """A key that is equal for names that differ only in case, Unicode normalisation or ignorable characters."""
    if name.isascii():
        return name.lower()
    import unicodedata

    name = _IGNORABLE.sub("", name)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def ignores_case(directory: str) -> bool:
    """Whether names in a directory that differ only in case are of one file; False if it does not exist.

    Raises:
        OSError: no file can be made in it.
    """
    import tempfile  # takes long to load, and is rarely needed

    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=f"{PRIVATE_DIR}-case-") as file:
            return os.path.exists(os.path.join(directory, os.path.basename(file.name).upper()))
    except FileNotFoundError:
        return False


def parents(name: str) -> Iterator[str]:
    """The directories that a name is in, the nearest first."""
    while name := name.rpartition("/")[0]:
        yield name


def is_url(text: str) -> bool:
    """Whether a text is an http or https URL, not a path. Schemes ignore case (RFC 3986 section 3.1)."""
    return text[:8].lower().startswith(("http://", "https://"))


def local_path(path: str | os.PathLike[str]) -> str:
    """A path of this machine, as text.

    Raises:
        ConfigError: it is empty, bytes or something else, a URL, contains a NUL, or can't be encoded.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"a path must be text or a pathlib.Path, not empty, and without NUL; got {path!r:.200}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConfigError(f"the path {path!r:.200} is not valid Unicode") from None
    if is_url(text):
        raise ConfigError(f"{redacted(text)} is a URL; give the path of a file or directory on this machine here")
    return text


def overlapping(directories: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The pairs of directories of which one is, or lies in, the other, by their keys: the outer and the inner one."""
    places = sorted((os.path.join(os.path.realpath(path), ""), key) for key, path in directories.items())
    for (outer, one), (inner, other) in itertools.combinations(places, 2):
        if inner.startswith(outer):
            yield one, other


def is_reserved(name: str) -> bool:
    """Whether a name, ignoring case, is perfkit's: a partial file, its journal, or one that starts with `.perfkit`."""
    folded = fold_name(name).rstrip(". ~")
    return folded.startswith(PRIVATE_DIR) or folded.endswith((".perfkit-part", ".perfkit-part.json"))


def safe_basename(text: str) -> str | None:
    """Reduce an untrusted name, such as one from Content-Disposition, to a plain file name; None if nothing is left.

    Takes the part after the last slash or backslash, without reserved characters, C1 and bidirectional controls, and
    leading dots, and truncates it to 200 bytes, keeping the extension.
    """
    name = re.split(r"[/\\]", text)[-1]
    name = _DECEPTIVE.sub("", _FORBIDDEN.sub("", name.encode(errors="ignore").decode()))
    name = name.strip().lstrip(".").rstrip(". ")
    if len(name.encode()) > _BASENAME_BYTES:
        stem, extension = os.path.splitext(name)
        extension = extension if len(extension.encode()) <= 20 else ""
        kept = stem.encode()[: _BASENAME_BYTES - len(extension.encode())].decode(errors="ignore")
        name = kept.rstrip(". ") + extension
    try:
        return check_name(name)
    except UnsafePathError:
        return None


def backup_name(name: str, taken: Callable[[str], bool]) -> str:
    """The first name that is not `taken` for an edited file that is kept: `NAME.perfkit-local`, then `-local-2` and on,
    in the same directory. A long name is cut to fit.
    """
    directory, slash, base = name.rpartition("/")
    number = 1
    while True:
        suffix = _BACKUP_SUFFIX if number == 1 else f"{_BACKUP_SUFFIX}-{number}"
        cut = base.encode()[: _COMPONENT_BYTES - len(suffix)].decode(errors="ignore")
        fresh = f"{directory}{slash}{cut}{suffix}"
        if not taken(fresh):
            return fresh
        number += 1


def name_matcher(patterns: Iterable[str]) -> Callable[[str], bool] | None:
    """A function that tells whether a name matches `.gitignore` patterns (gitignore(5)); None if there are no patterns.

    A name that ends in a slash is a directory. Everything below a matching directory matches, too.

    Raises:
        ConfigError: a pattern is invalid.
    """
    lines = [patterns] if isinstance(patterns, str) else list(patterns)
    if not lines:
        return None
    from pathspec import GitIgnoreSpec  # rarely needed

    try:
        return GitIgnoreSpec.from_lines(lines).match_file
    except (ValueError, TypeError, re.error) as error:
        raise ConfigError(f"{lines}: invalid gitignore patterns: {error}") from error
