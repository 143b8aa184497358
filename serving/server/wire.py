"""HTTP/1.1 on a connection, where Sanic's own loses an answer or refuses what the standard allows:

- a request that is refused before all of it came (413, 408, 431 ...): the answer, then what the
  client still sends is read and dropped, within bounds; closing at once would reset the connection
  and take the answer with it;
- one time limit for a request's head and body, however slowly they trickle;
- trailers and extensions of chunked bodies, ``Expect: 100-continue`` of a body that is too large;
- a client that has sent everything and closed its side still gets its answer.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

from sanic.exceptions import BadRequest
from sanic.http import Http, Stage
from sanic.http.http1 import HTTP_CONTINUE
from sanic.server.protocols.http_protocol import HttpProtocol

from sparsec.serving.server.errors import HttpError

# What is dropped after the answer to a request that is refused, at most: bytes, seconds in all, and
# seconds in which nothing comes.  While the server stops, it waits for less.
DROP_BYTES = 1 << 30
DROP_SECONDS = 30.0
DROP_IDLE, DROP_IDLE_STOPPING = 5.0, 0.2

# After a client has closed its side: when it is asked whether it is still there, and how often the
# answer is looked for, seconds.
PROBE, PROBE_AGAIN = 1.0, 0.25

# A line with the size of a chunk, extensions included.
CHUNK_LINE = 4096

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;.*)?", re.DOTALL)
_TCP_CLOSE = 7  # of the kernel's states


class Http1(Http):
    """One request after the other."""

    __slots__ = ()
    # Sanic leaves these without types.
    protocol: Any
    request_body: Any
    request_bytes: Any
    request_bytes_left: Any
    request_max_size: Any

    async def http1_request_header(self) -> None:
        """Wait for a request's head, and look at it before Sanic parses it."""
        protocol, buffer = self.protocol, self.recv_buffer
        protocol.start_clock()
        while True:
            while buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines before a request
                del buffer[:2]
            end = buffer.find(b"\r\n\r\n")
            if end >= 0 or len(buffer) >= self.HEADER_MAX_SIZE:
                break
            await protocol.receive_more()
        if 0 <= end < self.HEADER_MAX_SIZE:
            start, *fields = bytes(buffer[:end]).split(b"\r\n")
            buffer[:end] = b"\r\n".join([_plain(start), *map(_field, fields)])
        await super().http1_request_header()  # type: ignore[no-untyped-call]

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        # Whoever waits for "100 Continue" and gets an answer shall not send the body.
        self.expecting_continue = False
        await super().http1_response_header(data, end_stream)

    async def error_response(self, exception: Exception) -> None:
        if self.stage is Stage.REQUEST or self.request_body:
            self._give_up()
        await super().error_response(exception)

    def _give_up(self) -> None:
        """The rest of the request is not wanted."""
        self.request_body = None
        self.keep_alive = False
        self.protocol.unread = True

    async def read(self) -> bytes | None:
        """The next piece of a request's body; None: that was all.

        Raises:
            HttpError: 413 too large, 408 too slow, 400 damaged or cut off.
        """
        try:
            return await self._read()
        except HttpError:
            answered = self.stage is not Stage.HANDLER
            self._give_up()
            if answered:
                return None
            raise

    async def _read(self) -> bytes | None:
        buffer, chunked = self.recv_buffer, self.request_body == "chunked"
        if not chunked:
            self._check_size()
        if self.expecting_continue:
            self.expecting_continue = False
            await self._send(HTTP_CONTINUE)
        if chunked and not self.request_bytes_left:
            self.request_bytes_left = await self._chunk()
            self.request_bytes += self.request_bytes_left
            self._check_size()
        if not self.request_bytes_left:
            self.request_body = None
            return None
        if not buffer:
            await self.protocol.receive_more()
        data = bytes(buffer[: self.request_bytes_left])
        del buffer[: len(data)]
        self.request_bytes_left -= len(data)
        return data

    def _check_size(self) -> None:
        if self.request_bytes > self.request_max_size:
            raise HttpError(413, f"the body is larger than {self.request_max_size} bytes")

    async def _chunk(self) -> int:
        """The size of the next chunk; after the last one, which has none, past the trailers."""
        if await self._line():
            raise HttpError(400, "a chunk of the body does not end where it says")
        found = _SIZE.fullmatch(await self._line())
        if not found:
            raise HttpError(400, "a chunk of the body has no size")
        size = int(found[1], 16)
        if not size:
            left = self.HEADER_MAX_SIZE
            while line := await self._line():
                left -= len(line)
                if left < 0:
                    raise HttpError(431, "the trailers of the body are too long")
        return size

    async def _line(self) -> bytes:
        """A line, its end left out."""
        buffer = self.recv_buffer
        while (end := buffer.find(b"\r\n")) < 0:
            if len(buffer) > CHUNK_LINE:
                raise HttpError(400, "a chunk of the body has no size")
            await self.protocol.receive_more()
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        return line


class Connection(HttpProtocol):
    """A client's connection.

    Attributes:
        unread: the client may still be sending something that is not wanted.
        ended: the client has closed its side.
    """

    HTTP_CLASS = Http1
    __slots__ = ("_deadline", "_dropped", "_dropping", "_heard", "_timer", "ended", "unread")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.unread = False
        self.ended = False
        self._deadline = 0.0
        self._dropping = False
        self._dropped = 0
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # ---- reading ---------------------------------------------------------------------------------

    def start_clock(self) -> None:
        """A request begins: all of it has to come within the time limit."""
        self._deadline = self.loop.time() + self.app.config.READ_TIMEOUT

    async def receive_more(self) -> None:
        """Wait until the buffer has more.

        Raises:
            HttpError: 408 the time is over, 400 the client has closed its side.
            CancelledError: between requests, the client has closed its side.
        """
        assert self.transport is not None
        idle = self.http.stage is Stage.IDLE and not self.http.request_body
        held = len(self.recv_buffer)
        if not self.ended:
            self.transport.resume_reading()
            self._data_received.clear()
            timer = None if idle else self.loop.call_at(self._deadline, self._data_received.set)
            try:
                await self._data_received.wait()
            finally:
                if timer:
                    timer.cancel()
        if len(self.recv_buffer) > held:
            if idle or self.loop.time() < self._deadline:
                return
        elif self.ended:
            if idle:
                raise asyncio.CancelledError
            raise HttpError(400, "the connection ended before the request did")
        limit = self.app.config.READ_TIMEOUT
        raise HttpError(408, f"the request did not end within {limit:g} s")

    def data_received(self, data: bytes) -> None:
        if not self._dropping:
            super().data_received(data)
            return
        self._heard = self.loop.time()
        self._dropped += len(data)
        if self._dropped > DROP_BYTES:
            self._stop_dropping()

    def eof_received(self) -> bool:
        """The client has closed its side; returns whether ours stays open."""
        self.ended = True
        if self._dropping or self.http is None:
            return False
        if self.http.stage is Stage.IDLE and not self.recv_buffer:
            return False
        self._data_received.set()
        self._timer = self.loop.call_later(PROBE, self._probe, True)
        return True

    def _probe(self, ask: bool) -> None:
        """Find out whether a client that closed its side waits for the answer, or has gone.

        The kernel does not know before something is sent.  "100 Continue" may be sent at any time,
        to clients of HTTP/1.1; one that has gone resets the connection.
        """
        http = self.http
        if http is None or http.stage is not Stage.HANDLER or self.transport is None:
            return
        if _is_closed(self.transport.get_extra_info("socket")):
            self.abort()  # type: ignore[no-untyped-call]
            return
        if ask and http.request is not None and http.request.version == "1.1":
            self.transport.write(HTTP_CONTINUE)
        self._timer = self.loop.call_later(PROBE_AGAIN, self._probe, False)

    # ---- closing ---------------------------------------------------------------------------------

    def close(self, timeout: float | None = None) -> None:
        """Close; after an answer that came before the request's end, once the client has."""
        transport = self.transport
        if transport is None or transport.is_closing() or self.ended:
            super().close(timeout)
        elif self._dropping:
            return
        elif self.unread or self.recv_buffer:
            self._dropping = True
            self._heard = self.loop.time()
            self.recv_buffer.clear()
            transport.write_eof()
            transport.resume_reading()
            self._look_at_time(self._heard + DROP_SECONDS)
        else:
            super().close(timeout)

    def close_if_idle(self) -> bool:
        if self._dropping:
            if self.loop.time() - self._heard > DROP_IDLE_STOPPING:
                self._stop_dropping()
            return True
        return bool(super().close_if_idle())

    def _look_at_time(self, limit: float) -> None:
        now = self.loop.time()
        end = min(limit, self._heard + DROP_IDLE)
        if now >= end:
            self._stop_dropping()
        else:
            self._timer = self.loop.call_at(end, self._look_at_time, limit)

    def _stop_dropping(self) -> None:
        super().close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)  # type: ignore[no-untyped-call]


def _plain(line: bytes) -> bytes:
    if any(byte in line for byte in b"\r\n\0"):
        raise BadRequest("a header holds a control character")
    return line


def _field(line: bytes) -> bytes:
    """A header line that Sanic's parser takes in no other way than it is meant."""
    name, colon, value = _plain(line).partition(b":")
    if not colon or not _TOKEN.fullmatch(name):
        raise BadRequest("a header has no valid name")
    if name.lower() == b"transfer-encoding":
        value = value.strip().lower()
        if value != b"chunked":
            raise HttpError(501, "Transfer-Encoding must be chunked")
    return name + b":" + value.strip(b" \t")


def _is_closed(connection: socket.socket) -> bool:
    """Whether the kernel has given a connection up."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return False
    return info[0] == _TCP_CLOSE
