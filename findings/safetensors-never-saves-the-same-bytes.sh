#!/usr/bin/env bash
# safetensors 0.8.0 (with numpy 2.4.6), save() with several entries of metadata.
# Most would guess: the same tensors and metadata, saved by the same version, give the same bytes, so that a checksum or
# an ETag made of the content tells whether a model has changed.
# Seen: the order of the metadata's entries in the header is another one at each call, also within a process. With four
# entries, 20 calls give about ten different files of the same length. With none or one, as {"format": "pt"}, all are
# equal, and with tensors only. To publish a model only when it has changed, compare the tensors or keep one entry.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'END'
import hashlib
import numpy, safetensors
from safetensors.numpy import load, save

CALLS = 20
tensors = {f"layer{number}": numpy.full(1000, number, dtype="float32") for number in range(8)}
entries = {"format": "pt", "step": "1000", "base": "small", "licence": "MIT"}
print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}")
different = {}
for number in 0, 1, 4:
    metadata = dict(list(entries.items())[:number])
    saved = [save(tensors, metadata or None) for _ in range(CALLS)]
    assert len({len(data) for data in saved}) == 1
    assert all((load(data)[name] == tensors[name]).all() for data in saved for name in tensors)
    different[number] = len({hashlib.sha256(data).digest() for data in saved})
    print(f"{number} entries of metadata: {CALLS} calls, {different[number]} different files of {len(saved[0])} bytes")
assert different[0] == different[1] == 1 and different[4] > 1, "this has changed"
END
