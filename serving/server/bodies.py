"""Bodies: what a request has sent, unpacked, and data as a response of JSON."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from typing import Any

from sanic import HTTPResponse, Request

from sparsec.serving.server import json_text
from sparsec.serving.server.errors import HttpError

# Compressed bodies of more bytes are unpacked in another thread; codings on top of each other.
INLINE_BYTES = 4096
MAX_ENCODINGS = 2


async def body_of(request: Request, limit: int) -> bytes:
    """A request's body, decompressed.

    Raises:
        HttpError: 413 too large, 415 compressed in another way, 400 damaged.
    """
    body: bytes = request.body
    given = request.headers.get("content-encoding", "").lower().split(",")
    encodings = [name for word in given if (name := word.strip()) not in ("", "identity")]
    for encoding in encodings:
        if encoding not in ("gzip", "x-gzip", "deflate") or len(encodings) > MAX_ENCODINGS:
            raise HttpError(
                415, f"Content-Encoding {', '.join(encodings)} is not known: use gzip or deflate"
            )
    for encoding in reversed(encodings):
        if len(body) <= INLINE_BYTES:
            body = _unpack(body, encoding, limit)
        else:
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(None, _unpack, body, encoding, limit)
    return body


def _unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """gzip of any number of members, or deflate, which some clients write without zlib's header."""
    if encoding != "deflate":
        window = zlib.MAX_WBITS | 16
    elif len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0:
        window = zlib.MAX_WBITS
    else:
        window = -zlib.MAX_WBITS
    parts: list[bytes] = []
    room = limit
    while True:
        unpacker = zlib.decompressobj(window)
        try:
            parts.append(unpacker.decompress(body, room + 1))
        except zlib.error as error:
            raise HttpError(400, f"the body is not {encoding}: {error}") from None
        room -= len(parts[-1])
        if room < 0:
            raise HttpError(413, f"the decompressed body exceeds {limit} bytes")
        if not unpacker.eof:
            raise HttpError(400, f"the body is not {encoding}: it is cut off")
        body = unpacker.unused_data
        # A file of gzip may be filled up with zeros.
        if not body.strip(b"\0" if encoding != "deflate" else b""):
            return b"".join(parts)
        if encoding == "deflate":
            raise HttpError(400, "the body is not deflate: something follows its end")


def json_response(
    data: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> HTTPResponse:
    """Plain data or a prediction as a response."""
    return HTTPResponse(
        json_text.dumps(data),
        status=status,
        headers=dict(headers or {}),
        content_type="application/json",
    )
