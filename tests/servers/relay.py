"""A relay between a client and a server: it counts what the client is sent, and can hold it back half-way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from types import TracebackType

_STEP_BYTES = 16 << 10


class Relay:
    """Listens on a port of its own in a `with` block.

    Attributes:
        sent: bytes that clients were sent, heads included.
        hold_after: from so many bytes in `sent` on, it sends little at a time, for a client to be killed meanwhile.
        pause_s: between two such times, on each connection.
    """

    def __init__(self, host: str, port: int) -> None:
        self.sent = 0
        self.hold_after: int | None = None
        self.pause_s = 0.25
        self._target = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Relay:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._relay, "127.0.0.1", 0))
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: object) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)  # type: ignore[arg-type]

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError), contextlib.closing(answers):
            server, requests = await asyncio.open_connection(*self._target)
            # Little is under way unseen, so that `sent` is about what the client has had.
            answers.transport.set_write_buffer_limits(high=_STEP_BYTES)
            answers.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STEP_BYTES)
            with contextlib.closing(requests):
                pumps = [
                    asyncio.ensure_future(self._pump(client, requests, counted=False)),
                    asyncio.ensure_future(self._pump(server, answers, counted=True)),
                ]
                # Whichever side ends, the other is closed: no server here goes on after half of a connection.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_STEP_BYTES):
                sink.write(data)
                await sink.drain()
                if counted:
                    self.sent += len(data)
                    if self.hold_after is not None and self.sent >= self.hold_after:
                        await asyncio.sleep(self.pause_s)
