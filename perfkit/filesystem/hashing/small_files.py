"""SHA-256 of the small files of a tree, in this process or in a second one.

This module is also the program of that second process (see `hash_process`). So that it starts fast, it imports nothing
of perfkit.
"""

from __future__ import annotations

import os
import stat

try:
    from _hashlib import openssl_sha256 as sha256  # what hashlib would return, without its import time
except ImportError:
    from hashlib import sha256

try:
    from os import readv
except ImportError:  # PyPy

    def readv(descriptor: int, buffers: list[memoryview], /) -> int:  # type: ignore[misc]
        data = os.read(descriptor, len(buffers[0]))
        buffers[0][: len(data)] = data
        return len(data)


Digest = tuple[int, int, int, str]  # size, mtime_ns, ctime_ns, SHA-256 in hexadecimal

READ_BYTES = 256 << 10  # stays in the CPU cache between copying and hashing
LARGE_BYTES = 8 << 20  # files of this size and more are not hashed here
SOCKET, DIRECTORY = 0, 3  # descriptors of the second process
_PORTION_BYTES = 2 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW  # a FIFO must not block


def hash_small_files(root: int, names: list[str] | list[bytes], buffer: memoryview) -> list[Digest | None]:
    """The digests of the first of these files, at least one, up to about 2 MiB in total, so that work can be shared.

    The digest is None for a file that is large, not regular, can't be read, or was modified while it was read.

    Args:
        root: an open directory that the names are relative to.
        buffer: for reading. After a read that fills it, another one follows.
    """
    found: list[Digest | None] = []
    total = 0
    into = [buffer]
    for name in names:
        digest = None
        try:
            file = os.open(name, _FLAGS, dir_fd=root)
            try:
                before = os.fstat(file)
                if stat.S_ISREG(before.st_mode) and before.st_size < LARGE_BYTES:
                    count = size = readv(file, into)
                    content = sha256(buffer[:count])
                    while count == len(buffer) and size <= LARGE_BYTES:
                        count = readv(file, into)
                        content.update(buffer[:count])
                        size += count
                    after = os.fstat(file)
                    mtime_ns, ctime_ns = after.st_mtime_ns, after.st_ctime_ns
                    same = mtime_ns == before.st_mtime_ns and ctime_ns == before.st_ctime_ns
                    if same and size == after.st_size == before.st_size:
                        digest = size, mtime_ns, ctime_ns, content.hexdigest()
                    total += size
            finally:
                os.close(file)
        except OSError:
            pass
        found.append(digest)
        if total >= _PORTION_BYTES:
            break
    return found


def main() -> None:
    """The second process: read names and write digests, until the socket is closed.

    A message is its length in four bytes, followed by the names separated by NULs, or by a marshalled list.
    """
    import marshal

    buffer = memoryview(bytearray(READ_BYTES))
    with open(SOCKET, "rb", closefd=False) as requests:
        while len(head := requests.read(4) or b"") == 4:
            names = requests.read(int.from_bytes(head, "little")).split(b"\0")
            answer = marshal.dumps(hash_small_files(DIRECTORY, names, buffer))
            left = memoryview(len(answer).to_bytes(4, "little") + answer)
            while left:
                left = left[os.write(SOCKET, left) :]


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # the socket is closed, or it was interrupted: the first process handles both
        os._exit(1)
    os._exit(0)  # at once: there is nothing to clean up
