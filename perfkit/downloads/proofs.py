"""Fetches what proves that a file is the right one: its entry in a checksum file, and its signature."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from perfkit.downloads.cancel import Cancel
from perfkit.downloads.checksum_files import CHECKSUM_FILE_BYTES, SharedChecksumFiles
from perfkit.downloads.checksums import Checksum
from perfkit.downloads.concurrency import host_of
from perfkit.downloads.http.urls import signature_url
from perfkit.downloads.negotiation import make_get
from perfkit.downloads.probe import read_small_file
from perfkit.downloads.request import Request
from perfkit.downloads.retry import Network
from perfkit.downloads.throttle import Throttle
from perfkit.errors import CancelledError, ConfigError, HTTPStatusError, SignatureError, TransferError
from perfkit.minisign.public_keys import MAX_FILE_BYTES, read_public_keys
from perfkit.redact import redacted

if TYPE_CHECKING:
    from perfkit.minisign.signatures import Signature

_FRESH = {"Cache-Control": "max-age=0"}


class Proofs:
    """The proofs of one requested file. For one worker at a time.

    Args:
        throttles: those of the file's own requests.

    Attributes:
        needs_signature: whether the file itself must be signed; if it has a checksum file, that one must be instead.
        requests, received_bytes: requests made, and bytes received for signatures.
    """

    def __init__(
        self,
        request: Request,
        network: Network,
        checksum_files: SharedChecksumFiles,
        throttles: tuple[Throttle, ...],
        cancel: Cancel,
    ) -> None:
        self.needs_signature = bool(request.public_keys) and not request.checksum_url
        self.requests = self.received_bytes = 0
        self._request = request
        self._network = network
        self._checksum_files = checksum_files
        self._throttles = throttles
        self._cancel = cancel
        self._signature: Signature | None = None  # of the current source

    def find_checksum(self) -> Checksum | None:
        """The checksum that the file must have, from the caller or the checksum file that the caller named.

        Raises:
            SignatureError: the checksum file is not signed as the caller wants.
            TransferError: it has none for this file, or can't be fetched.
        """
        request, url = self._request, self._request.checksum_url
        if url is None:
            return request.promised

        def read() -> bytes:
            data = self._read(url, CHECKSUM_FILE_BYTES + 1)
            if len(data) > CHECKSUM_FILE_BYTES:
                raise TransferError(url, f"the checksum file is larger than {CHECKSUM_FILE_BYTES} bytes")
            if request.public_keys:
                self._verify(io.BytesIO(data), self._fetch(url))
            return data

        try:
            return self._checksum_files.get(url, request.public_keys, read).find(request.url)
        except ConfigError as error:
            raise TransferError(request.url, str(error)) from None

    def fetch_signature(self, url: str) -> None:
        """Fetch the file's signature from beside its URL, if it must have one, without verifying it yet.

        Raises:
            SignatureError: the server has no signature for it.
            TransferError: it can't be fetched.
            ConfigError: the package cryptography is missing.
        """
        if self.needs_signature and self._signature is None:
            self._signature = self._fetch(url)

    def forget_signature(self) -> None:
        """Forget the signature: the file will come from another source, or was wrong."""
        self._signature = None

    def verify_signature(self, path: str | int) -> None:
        """Check that the file, given by its path or a descriptor, which stays open, is signed as the caller wants.

        Raises:
            SignatureError: it is not.
        """
        assert self._signature is not None
        with open(path, "rb", closefd=isinstance(path, str)) as file:
            file.seek(0)
            self._verify(file, self._signature)

    def _fetch(self, signed_url: str) -> Signature:
        from perfkit.minisign.signatures import BadSignatureError, Signature, load_ed25519  # rarely needed

        load_ed25519()
        url = signature_url(signed_url)
        try:
            data = self._read(url, MAX_FILE_BYTES + 1)
            self.received_bytes += len(data)
            return Signature.parse(data)
        except BadSignatureError as error:
            raise SignatureError(url, str(error)) from error
        except HTTPStatusError as error:
            if error.transient:
                raise
            reason = f"it is not signed: {redacted(url)}: {error.reason}"
            raise SignatureError(self._request.url, reason) from error

    def _read(self, url: str, most: int) -> bytes:
        self.requests += 1
        get = make_get(self._request, url, _FRESH, self._throttles)
        return read_small_file(self._network, get, most=most, host=host_of(url), cancel=self._cancel)

    def _verify(self, file: BinaryIO, signature: Signature) -> None:
        from perfkit.minisign.signatures import BadSignatureError, verify

        keys = read_public_keys(self._request.public_keys)
        try:
            verify(file, signature, keys, stopped=lambda: self._cancel.cancelled)
        except BadSignatureError as error:
            if self._cancel.cancelled:
                raise CancelledError(self._request.url, "cancelled") from error
            raise SignatureError(self._request.url, str(error)) from error
