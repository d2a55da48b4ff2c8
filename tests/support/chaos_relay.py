"""A relay between clients and a server that breaks and falsifies answers, by chance."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

# What any client notices: ends, silence and slowness.
BREAKS = ("reset", "close", "stall", "delay", "drip", "refuse")
# What only a checksum shows: a bit flipped, bytes lost, bytes from nowhere, and the answers of two connections swapped.
FALSE = ("flip", "cut", "garbage", "swap")


@dataclass(eq=False)
class _Connection:
    """One of a client, with the fault that it will have when `at` bytes have been sent."""

    sink: asyncio.StreamWriter
    kind: str
    at: int
    chance: random.Random
    path: str = ""  # of the last request
    sent: int = 0

    @property
    def due(self) -> bool:
        return self.kind != "" and self.sent >= self.at


class ChaosRelay:
    """Listens on a port of its own in a `with` block; no fault happens until `begin`.

    Attributes:
        faults: how often each has happened.
        open: connections of clients.
    """

    def __init__(self, host: str, port: int) -> None:
        self.faults = Counter[str]()
        self.open = 0
        self._target = host, port
        self._chance: random.Random | None = None
        self._may_falsify: Callable[[str], bool] = lambda path: False
        self._alone: _Connection | None = None  # waits for another one to swap answers with
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def begin(self, chance: random.Random, may_falsify: Callable[[str], bool]) -> None:
        """Have connections fail from now on.

        Args:
            may_falsify: whether an answer may have other bytes, given its path.
        """
        self._chance, self._may_falsify, self._alone = random.Random(chance.random()), may_falsify, None

    def rest(self) -> None:
        """Pass on everything as it is, on new connections."""
        self._chance = None

    def __enter__(self) -> ChaosRelay:
        self._thread.start()
        starting = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(100)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}/"
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(100)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connection(self, sink: asyncio.StreamWriter) -> _Connection:
        chance = self._chance
        if chance is None or chance.random() < 0.4:
            return _Connection(sink, "", 0, random.Random(0))
        at = int(10 ** chance.uniform(0, 5.4))
        return _Connection(sink, chance.choice(BREAKS + FALSE), at, random.Random(chance.random()))

    async def _accept(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        connection = self._connection(answers)
        self.open += 1
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError):
                if connection.kind == "refuse":
                    self._reset(connection)
                else:
                    await self._relay(connection, client)
        finally:
            answers.close()
            if self._alone is connection:
                self._alone = None
            self.open -= 1

    async def _relay(self, connection: _Connection, client: asyncio.StreamReader) -> None:
        server, requests = await asyncio.open_connection(*self._target)
        with contextlib.closing(requests):
            pumps = [
                asyncio.ensure_future(self._ask(connection, client, requests)),
                asyncio.ensure_future(self._answer(connection, server)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _ask(self, connection: _Connection, client: asyncio.StreamReader, requests: asyncio.StreamWriter) -> None:
        while data := await client.read(65536):
            if found := re.match(rb"GET (\S+) ", data):
                connection.path = found[1].decode("latin-1")
            requests.write(data)
            await requests.drain()

    async def _answer(self, connection: _Connection, server: asyncio.StreamReader) -> None:
        while data := await server.read(16384):
            if connection.kind in FALSE and not self._may_falsify(connection.path):
                connection.kind = ""
            before = max(0, connection.at - connection.sent)
            if connection.kind and before < len(data):
                await self._send(connection, data[:before])
                data = await self._strike(connection, data[before:])
            await self._send(connection, data)

    async def _send(self, connection: _Connection, data: bytes) -> None:
        connection.sink.write(data)
        await connection.sink.drain()
        connection.sent += len(data)

    async def _strike(self, connection: _Connection, data: bytes) -> bytes:
        """Do what is due; returns what is to be sent."""
        kind, chance = connection.kind, connection.chance
        self.faults[kind] += 1
        if kind not in ("delay", "drip"):
            connection.kind = ""  # once
        if kind == "reset":
            self._reset(connection)
        elif kind == "close":
            connection.sink.close()
        elif kind == "stall":
            await asyncio.sleep(3600)  # until the client goes
        elif kind == "delay":
            await asyncio.sleep(chance.uniform(0, 0.08))
        elif kind == "drip":
            for at in range(min(100, len(data))):
                await self._send(connection, data[at : at + 1])
                await asyncio.sleep(0.001)
            return data[100:]
        elif kind == "flip":
            return bytes([data[0] ^ 1 << chance.randrange(8)]) + data[1:]
        elif kind == "cut":
            return data[chance.randint(1, 2000) :]
        elif kind == "garbage":
            return chance.randbytes(chance.randint(1, 300)) + data
        elif kind == "swap":
            self._swap(connection)
        return data

    def _swap(self, connection: _Connection) -> None:
        other = self._alone
        if other is None:
            self._alone = connection
        else:
            other.sink, connection.sink = connection.sink, other.sink
            self._alone = None

    def _reset(self, connection: _Connection) -> None:
        connection.sink.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        connection.sink.transport.abort()
