"""TLS over a socket, read in large pieces.

`ssl.SSLSocket` asks the kernel twice for each record of 16 KiB, 131,000 times for a GiB. Here what has arrived is taken
in one go, and decrypted from memory. This module is for those who speak TLS: to load `ssl` takes a while.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from typing import cast

__all__ = ["TlsSocket", "make_context"]

_RECEIVE_BYTES = 256 << 10  # it stays in the processor's cache on its way


def make_context(*, verify: bool, ca_bundle: str | None, client_cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    """How to speak TLS. Parsing the CA bundle takes some 15 ms: make one for all connections.

    Args:
        ca_bundle: a PEM file or a directory; None is certifi's.

    Raises:
        OSError: a file can't be read, or is no certificate.
    """
    if ca_bundle is None and verify:
        import certifi

        ca_bundle = certifi.where()
    if verify:
        is_directory = os.path.isdir(ca_bundle or "")
        context = ssl.create_default_context(
            cafile=None if is_directory else ca_bundle, capath=ca_bundle if is_directory else None
        )
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols(["http/1.1"])
    if client_cert is not None:
        context.load_cert_chain(*((client_cert,) if isinstance(client_cert, str) else client_cert))
    return context


class TlsSocket:
    """As much of a socket as HTTP needs. Making one shakes hands, and takes the socket over.

    Args:
        host: whom the certificate has to name.

    Raises:
        OSError: of the socket, `TimeoutError` included; `ssl.SSLError`, such as a certificate that is not trusted.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock = sock
        self._timeout_s = sock.gettimeout()
        sock.setblocking(False)
        self._poll = select.poll()
        self._coded = memoryview(bytearray(_RECEIVE_BYTES))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError:
                self._flush()  # the alert, which tells the peer why
                raise
        self._flush()

    def fileno(self) -> int:
        return self._sock.fileno()

    def gettimeout(self) -> float | None:
        return self._timeout_s

    def settimeout(self, seconds: float | None) -> None:
        self._timeout_s = seconds

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def recv(self, most: int) -> bytes:
        buffer = bytearray(most)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def recv_into(self, view: memoryview) -> int:
        """Fill the view with what has arrived, waiting for at least one byte; 0 at the end."""
        total = 0
        try:
            while total < len(view):
                try:
                    count = cast(int, self._tls.read(len(view) - total, view[total:]))
                except ssl.SSLWantReadError:
                    if self._outgoing.pending:
                        self._flush()  # the peer wants other keys (RFC 8446 section 4.6.3)
                    if total:
                        break
                    self._receive()
                    continue
                if count == 0:
                    break
                total += count
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass  # HTTP knows by itself where its body ends
        return total

    def close(self) -> None:
        self._sock.close()

    def _receive(self) -> None:
        """Take what has arrived, waiting for at least one byte, or the end."""
        while True:
            try:
                count = self._sock.recv_into(self._coded)
                break
            except BlockingIOError:
                self._await(select.POLLIN)
        if count:
            self._incoming.write(self._coded[:count])
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        data = self._outgoing.read()
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                self._await(select.POLLOUT)

    def _await(self, event: int) -> None:
        if self._timeout_s == 0:
            raise BlockingIOError
        self._poll.register(self._sock, event)
        if not self._poll.poll(None if self._timeout_s is None else self._timeout_s * 1000):
            raise TimeoutError("timed out")
