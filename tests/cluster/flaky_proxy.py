"""A proxy in front of an HTTP server that misbehaves on request: a network, and a storage service, on a bad day.

It lets one request through per connection, so that a connection that breaks is a request that breaks, and counts what
it did. Which request fares how is a function of its method and number, so a test repeats exactly.
"""

import asyncio
import contextlib
import enum
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from urllib.parse import urlsplit


class Fault(enum.Enum):
    """What may happen to a request."""

    CUT_REQUEST = "the connection breaks in the middle of the body: the server never sees all of it"
    CUT_RESPONSE = "the server does it all, and the connection breaks before it can say so"
    SLOW_DOWN = "503, as services answer that have too much to do"
    STALL = "nothing happens for a while"


Chooser = Callable[[str, int], Fault | None]
"""(method, number of this request among those of the method, from 1) -> its fault."""


def every(number: int, *faults: Fault, methods: Collection[str] = ("PUT",)) -> Chooser:
    """Every so many-th request meets one of the faults, in turn."""

    def choose(method: str, count: int) -> Fault | None:
        turn, rest = divmod(count, number)
        return faults[(turn - 1) % len(faults)] if method in methods and rest == 0 else None

    return choose


def randomly(share: float, *faults: Fault, seed: int, methods: Collection[str] = ("PUT", "GET", "HEAD")) -> Chooser:
    """Each request meets a fault with this probability; the same seed and count give the same fault."""

    def choose(method: str, count: int) -> Fault | None:
        draw = random.Random(f"{seed} {method} {count}")
        return draw.choice(faults) if method in methods and draw.random() < share else None

    return choose


class FlakyProxy:
    """Use as a context manager; ``endpoint`` is then the URL to go through."""

    def __init__(self, upstream: str, *, stall_seconds: float = 2) -> None:
        self.upstream = urlsplit(upstream)
        self.stall_seconds = stall_seconds
        self.choose: Chooser = lambda method, count: None
        self.requests: Counter[str] = Counter()
        self.faults: Counter[Fault] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "FlakyProxy":
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._hang_up())
        self._call(self._drop_requests())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Nobody is there meanwhile: connections are refused. Requests that are under way come to their end."""
        self._call(self._hang_up())
        try:
            yield
        finally:
            self._call(self._listen())

    def _call(self, work: "asyncio.Coroutine[object, object, None]") -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", self._port, limit=2**24)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _hang_up(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _drop_requests(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._relay(reader, writer)
        finally:
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method = head.split(b" ", 1)[0].decode()
        self.requests[method] += 1
        fault = self.choose(method, self.requests[method])
        length = _content_length(head)
        if fault is Fault.CUT_REQUEST and not length:
            fault = Fault.CUT_RESPONSE  # there is no body to break
        if fault is not None:
            self.faults[fault] += 1
        if fault is Fault.STALL:
            await asyncio.sleep(self.stall_seconds)
        body = await reader.readexactly(length // 2 if fault is Fault.CUT_REQUEST else length)
        if fault is Fault.SLOW_DOWN:
            writer.write(SLOW_DOWN_RESPONSE)
            return
        up_reader, up_writer = await asyncio.open_connection(self.upstream.hostname, self.upstream.port)
        try:
            up_writer.write(_last_of_its_connection(head) + body)
            await up_writer.drain()
            if fault is Fault.CUT_REQUEST:
                _reset(writer)
                return
            response = await up_reader.read(-1)
            if fault is Fault.CUT_RESPONSE:
                writer.write(_first_part(response))
                _reset(writer)
                return
            writer.write(response)
            await writer.drain()
        finally:
            up_writer.close()


SLOW_DOWN_BODY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
SLOW_DOWN_RESPONSE = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(SLOW_DOWN_BODY), SLOW_DOWN_BODY)
)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _last_of_its_connection(head: bytes) -> bytes:
    """The same request, asking the server to close the connection after its answer."""
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _first_part(response: bytes) -> bytes:
    """A response up to the middle of its body, which is harder to mend than one that breaks off in its head."""
    head, end, body = response.partition(b"\r\n\r\n")
    return head + end + body[: len(body) // 2] if body else head[: len(head) // 2]


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a network fault does: no farewell, what was not sent is lost."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
