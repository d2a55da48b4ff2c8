"""Download many files at once, with bars on standard error. It prints:

    200 files, 19.5 MiB, in out/
    the first: 000.bin, 102400 bytes, verified: True
    failed: missing.bin: HTTP status 404; the other 200 are complete

To run it:  python examples/download_many.py
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from perfkit import Bars, BatchError, Request, Toolkit
from perfkit.server.server import Server

FILES, SIZE = 200, 100 << 10


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        site, out = Path(scratch, "site"), Path(scratch, "out")
        site.mkdir()
        checksums = {}
        for number in range(FILES):
            data = os.urandom(SIZE)
            (site / f"{number:03}.bin").write_bytes(data)
            checksums[f"{number:03}.bin"] = f"sha256:{hashlib.sha256(data).hexdigest()}"

        with Server(site) as server, Toolkit(progress=Bars()) as kit:
            wanted = [Request(f"{server.url}{name}", name, checksum=checksum) for name, checksum in checksums.items()]
            done = kit.download_many(wanted, out)
            print(f"{len(done)} files, {sum(each.bytes for each in done) / (1 << 20):.1f} MiB, in {out.name}/")
            first = done[0]  # results are in the order of the requests
            print(f"the first: {Path(first.path).name}, {first.bytes} bytes, verified: {first.checksum is not None}")

            try:
                kit.download_many([*wanted, f"{server.url}missing.bin"], out)
            except BatchError as error:  # raised after all others are complete
                failed = [each for each in error.results if each.error is not None]
                print(
                    f"failed: {str(failed[0].error).removeprefix(server.url)}; "
                    f"the other {len(error.results) - len(failed)} are complete"
                )


if __name__ == "__main__":
    main()
