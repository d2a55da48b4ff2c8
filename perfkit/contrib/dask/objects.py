"""Upload files to a store that fsspec supports, such as S3: each appears complete and verified, or not at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import mmap
import os
import posixpath
import uuid
from collections.abc import Iterator

from fsspec.core import url_to_fs

from perfkit.errors import IntegrityError

_PART_BYTES = 16 << 20  # of a multipart upload; S3 takes 5 MiB or more, and at most 10,000 parts
_MOST_PARTS = 10_000


class ObjectStore:
    """The place below a URL; credentials are those that fsspec finds on this machine.

    Raises:
        ImportError: the package that fsspec needs for the protocol is not installed.
        ValueError: fsspec doesn't support the protocol.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = url_to_fs(url)

    def put(self, path: str, name: str) -> str:
        """Upload a local file; returns its URL.

        Raises:
            IntegrityError: the stored bytes differ from those that were sent.
            OSError: the file or the store failed.
        """
        target = posixpath.join(self._root, name)
        if hasattr(self._fs, "call_s3"):
            self._put_s3(path, target)
        else:
            self._put_and_move(path, target)
        return str(self._fs.unstrip_protocol(target))

    def _put_and_move(self, path: str, target: str) -> None:
        """Upload under a temporary name, read that again, and rename it."""
        directory, name = posixpath.split(target)
        partial = posixpath.join(directory, f".{name}.{uuid.uuid4().hex}.perfkit-part")
        self._fs.makedirs(directory, exist_ok=True)
        try:
            self._fs.put_file(path, partial)
            with open(path, "rb") as sent, self._fs.open(partial, "rb") as kept:
                expected, actual = (hashlib.file_digest(file, "sha256").hexdigest() for file in (sent, kept))
            if actual != expected:
                url = self._fs.unstrip_protocol(target)
                raise IntegrityError(url, "the store has other bytes", f"sha256:{expected}", f"sha256:{actual}")
            self._fs.mv(partial, target)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(partial)
            raise

    def _put_s3(self, path: str, target: str) -> None:
        """Upload with the MD5 of the body, which S3 compares (RFC 1864); a large file in parts, of which those that an
        interrupted upload has sent are kept.
        """
        bucket, _, key = target.partition("/")
        place = {"Bucket": bucket, "Key": key}
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _PART_BYTES:
                body = file.read()
                self._fs.call_s3("put_object", **place, Body=body, ContentMD5=_md5(body))
                self._fs.invalidate_cache(target)
                return
            upload, kept = self._interrupted(place)
            upload = upload or self._fs.call_s3("create_multipart_upload", **place)["UploadId"]
            parts = []
            for number, body in _parts(file.fileno(), size):
                etag = kept.get(number)
                if etag != f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"':
                    options = {"PartNumber": number, "UploadId": upload, "Body": body, "ContentMD5": _md5(body)}
                    etag = self._fs.call_s3("upload_part", **place, **options)["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
        self._fs.call_s3("complete_multipart_upload", **place, UploadId=upload, MultipartUpload={"Parts": parts})
        self._fs.invalidate_cache(target)

    def _interrupted(self, place: dict[str, str]) -> tuple[str | None, dict[int, str]]:
        """The latest upload of a key that was not completed, and the ETags of its parts."""
        found = self._fs.call_s3("list_multipart_uploads", Bucket=place["Bucket"], Prefix=place["Key"])
        uploads = [each for each in found.get("Uploads", ()) if each["Key"] == place["Key"]]
        if not uploads:
            return None, {}
        upload: str = max(uploads, key=lambda each: each["Initiated"])["UploadId"]
        kept: dict[int, str] = {}
        marker = 0
        while True:
            page = self._fs.call_s3("list_parts", **place, UploadId=upload, PartNumberMarker=marker)
            kept.update((each["PartNumber"], each["ETag"]) for each in page.get("Parts", ()))
            if not page.get("IsTruncated"):
                return upload, kept
            marker = page["NextPartNumberMarker"]


def _parts(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    step = max(_PART_BYTES, math.ceil(size / _MOST_PARTS))
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as content:
        for number, at in enumerate(range(0, size, step), 1):
            yield number, content[at : at + step]


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
