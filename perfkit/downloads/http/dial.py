"""Opens a TCP connection: resolves the name, races the addresses (RFC 8305), and gives up at once when aborted."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from concurrent.futures import Future
from itertools import zip_longest
from typing import Any

from perfkit.config import Config
from perfkit.downloads.http.uninterruptible import AbortedError, HelperThread, discard_result, result_of
from perfkit.downloads.http.urls import origin_of
from perfkit.errors import ConfigError

_ATTEMPT_DELAY_S = 0.25  # RFC 8305 section 5: between the starts of two attempts
_ABORT_CHECK_S = 0.05
_REMEMBERED = 1024  # hosts

Address = tuple[Any, ...]  # an item of socket.getaddrinfo
SocketOption = tuple[int, int, int | bytes]

# By host and port, the address that answered last, which the next connection tries first. Shared by the process.
_answered: dict[tuple[str, int], Any] = {}

# By host and port, connections that were begun before they were needed, and when. A forked process has no thread that
# makes them.
_begun: dict[tuple[str, int], deque[tuple[float, Future[socket.socket]]]] = {}
_shared: set[tuple[str, int]] = set()  # those that may have been begun several times, for several requests
os.register_at_fork(after_in_child=_begun.clear)
os.register_at_fork(after_in_child=_shared.clear)
_USUAL = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)  # urllib3's options
_MOST_IDLE_S = 5.0  # servers and firewalls drop connections that have sent nothing for long
_NEAR_S = 0.005  # the first round of requests to a server that takes longer to connect to goes out at once


def connect_early(urls: Sequence[str], config: Config) -> None:
    """Begin a connection to the origin of the first URL, for the next `dial`: if requests is still to be imported,
    which takes as long as some round trips, and if neither a proxy nor a `FakeOrigin` may be used. If the server is
    distant, begin one for each request to it that will be made at once.

    Args:
        urls: of the first requests.
    """
    names = " ".join(os.environ).lower()
    proxied = config.proxies or (config.trust_env and ("_proxy" in names or sys.platform == "darwin"))
    if proxied or not urls or not sys.modules.keys().isdisjoint(("urllib3", "perfkit.testing")):
        return
    with contextlib.suppress(ConfigError):  # one is a path
        origin = origin_of(urls[0])
        place = origin[1:]
        begun = _begun.setdefault(place, deque())

        def begin() -> Future[socket.socket]:
            made = HelperThread().begin(lambda: _connect(*place, config.connect_timeout_s, lambda: False, _USUAL))
            begun.append((time.monotonic(), made))
            return made

        first = begun[0][1] if begun else begin()
        if len(urls) > 1 and config.rate_limit is None and place not in _shared:
            _shared.add(place)
            descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # imports need some, too
            most = min(config.connections_per_host, config.most_streams, max(1, descriptors // 8))
            at_once = urls[:most]
            count = sum(origin_of(url) == origin for url in at_once)

            def begin_more() -> None:
                if futures.wait([first], _NEAR_S).not_done:
                    for _ in range(1, count):
                        begin()

            HelperThread().begin(begin_more)


def dial(
    host: str,
    port: int,
    *,
    timeout_s: float,
    aborted: Callable[[], bool],
    options: Iterable[SocketOption] = (),
    ahead: bool = False,
) -> socket.socket:
    """Connect to the first address of the host that answers; a further one is tried every 250 ms (RFC 8305).

    Args:
        timeout_s: for all attempts together, name resolution excepted; also the timeout of the socket returned.
        aborted: called some twenty times a second; says whether to give up.
        options: for `setsockopt`, set before connecting.
        ahead: no request waits for it, so leave what `connect_early` has begun to the first that does.

    Raises:
        socket.gaierror: the name does not resolve.
        TimeoutError: no address answered in time.
        AbortedError: `aborted` said so.
        OSError: no address accepts connections; the error of the last attempt.
    """
    options = tuple(options)
    while not ahead and (early := _take_begun(host, port)):
        since_s, begun = early
        if options == _USUAL and time.monotonic() - since_s < _MOST_IDLE_S and not _has_ended(begun):
            return result_of(begun, aborted, discard=socket.socket.close)
        # Left open, it would hold up the request at a server that serves one connection at a time.
        discard_result(begun, socket.socket.close)
    return _connect(host, port, timeout_s, aborted, options)


def _take_begun(host: str, port: int) -> tuple[float, Future[socket.socket]] | None:
    with contextlib.suppress(KeyError, IndexError):
        return _begun[host, port].popleft()
    return None


def _has_ended(begun: Future[socket.socket]) -> bool:
    """Whether connecting failed, or the server has sent something, such as the end, before it was asked."""
    if not begun.done() or begun.exception() is not None:
        return begun.done()
    poll = select.poll()
    poll.register(begun.result(), select.POLLIN)
    return bool(poll.poll(0))


def _connect(
    host: str, port: int, timeout_s: float, aborted: Callable[[], bool], options: Sequence[SocketOption]
) -> socket.socket:
    addresses = _resolve(host, port, aborted)
    sock, address = _race(_in_order(addresses, _answered.get((host, port))), timeout_s, aborted, options)
    if len(addresses) > 1:
        if len(_answered) >= _REMEMBERED:
            _answered.clear()
        _answered[host, port] = address
    sock.settimeout(timeout_s)
    return sock


def _resolve(host: str, port: int, aborted: Callable[[], bool]) -> Sequence[Address]:
    with contextlib.suppress(socket.gaierror, UnicodeError):
        name = host.encode("ascii")  # text would load the codec of internationalized names
        return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return HelperThread().call(
        lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), aborted, discard=lambda addresses: None
    )


def _in_order(addresses: Sequence[Address], answered: object) -> list[Address]:
    """The address that answered last comes first; then the families alternate (RFC 8305 section 4)."""
    first = [each for each in addresses if each[4] == answered]
    families: dict[int, list[Address]] = {}
    for each in addresses:
        if each[4] != answered:
            families.setdefault(each[0], []).append(each)
    return first + [each for row in zip_longest(*families.values()) for each in row if each is not None]


def _race(
    addresses: Sequence[Address],
    timeout_s: float,
    aborted: Callable[[], bool],
    options: Sequence[SocketOption],
) -> tuple[socket.socket, Any]:
    """The first socket that connects, and its address; the others are closed."""
    waiting = deque(addresses)
    connecting: dict[int, tuple[socket.socket, Any]] = {}
    poll = select.poll()
    next_attempt_s = now_s = time.monotonic()
    deadline_s = now_s + timeout_s
    failure: OSError = OSError("the name has no address")
    try:
        while waiting or connecting:
            now_s = time.monotonic()
            if aborted():
                raise AbortedError("aborted")
            if now_s >= deadline_s:
                raise TimeoutError("timed out")
            if waiting and (now_s >= next_attempt_s or not connecting):
                try:
                    sock, address = _begin(waiting.popleft(), options)
                except OSError as error:  # an address family that is not supported here, no route, ...
                    failure = error
                    continue
                connecting[sock.fileno()] = sock, address
                poll.register(sock, select.POLLOUT)
                next_attempt_s = now_s + _ATTEMPT_DELAY_S
            until_s = min(deadline_s, now_s + _ABORT_CHECK_S, next_attempt_s if waiting else deadline_s)
            for descriptor, _ in poll.poll(max(0.0, until_s - now_s) * 1000):
                sock, address = connecting.pop(descriptor)
                poll.unregister(descriptor)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    return sock, address
                failure = OSError(code, os.strerror(code))
                sock.close()
                next_attempt_s = now_s
        raise failure
    finally:
        for sock, _ in connecting.values():
            sock.close()


def _begin(address: Address, options: Sequence[SocketOption]) -> tuple[socket.socket, Any]:
    """Start connecting a socket; returns it, and the address it connects to."""
    family, kind, protocol, _, peer = address
    sock = socket.socket(family, kind, protocol)
    try:
        for option in options:
            sock.setsockopt(*option)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(peer)
    except OSError:
        sock.close()
        raise
    return sock, peer
