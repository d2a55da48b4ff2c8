"""Files put into stores: they appear whole, and an interrupted multipart upload goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from perfkit.contrib.dask import objects
from perfkit.contrib.dask.objects import ObjectStore
from perfkit.errors import IntegrityError
from tests.support.tools import unavailable

pytestmark = pytest.mark.once
PART = 5 << 20  # the least that S3 takes


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty one, in moto's server."""
    try:
        import s3fs
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        unavailable(str(error))
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
        patch.setitem(fsspec.config.conf, "s3", options)
        s3fs.S3FileSystem(**options).mkdir("bucket")
        yield "s3://bucket/files"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def no_leak() -> None:
    """s3fs keeps a thread and connections for the life of the process."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(os.urandom(2 * PART + 1000))
    return tmp_path / "file"


def test_s3_goes_on_with_the_parts_it_has(bucket: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three parts, one was sent by an upload that was interrupted: two are sent. Then nothing is left over."""
    monkeypatch.setattr(objects, "_PART_BYTES", PART)
    store = ObjectStore(bucket)
    fs = fsspec.filesystem("s3")
    real, sent = fs.call_s3, []

    def call(name: str, **options: object) -> object:
        if name == "upload_part":
            if len(sent) == 1:
                sent.append(0)
                raise ConnectionError("broken")
            sent.append(options["PartNumber"])
        return real(name, **options)

    monkeypatch.setattr(fs, "call_s3", call)
    with pytest.raises(ConnectionError):
        store.put(str(file), "a/large")
    assert not fs.exists("bucket/files/a/large")
    assert store.put(str(file), "a/large") == f"{bucket}/a/large"
    assert sent == [1, 0, 2, 3]
    assert fs.cat("bucket/files/a/large") == file.read_bytes()
    assert not real("list_multipart_uploads", Bucket="bucket").get("Uploads")
    file.write_bytes(b"small")
    store.put(str(file), "small")
    assert fs.cat("bucket/files/small") == b"small"


def test_others_have_it_under_its_name_once_it_was_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that keeps other bytes is found out, and keeps nothing."""
    fs = MemoryFileSystem()
    assert ObjectStore("memory://whole").put(str(file), "a/b") == "memory:///whole/a/b"
    assert fs.cat("/whole/a/b") == file.read_bytes()
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda self, path, target: self.pipe_file(target, b"other"))
    with pytest.raises(IntegrityError, match="the store has other bytes"):
        ObjectStore("memory://whole").put(str(file), "c")
    assert fs.find("/whole") == ["/whole/a/b"]
