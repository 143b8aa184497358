"""The pool of big constants that all buckets of an artifact share."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

ALIGN = 64


class WeightPool:
    """Collects constant arrays into one byte string; equal arrays are stored once."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        #: Bytes stored so far.
        self.size = 0
        self._known: dict[tuple[int, bytes], int] = {}

    def add(self, array: np.ndarray[Any, Any]) -> int:
        """Store an array's bytes (C order); returns their offset, a multiple of 64."""
        data = np.ascontiguousarray(array).tobytes()
        key = (len(data), hashlib.sha256(data).digest())
        if key not in self._known:
            padding = -len(data) % ALIGN
            self._known[key] = self.size
            self._chunks.append(data + b"\0" * padding)
            self.size += len(data) + padding
        return self._known[key]

    def offsets(self) -> tuple[int, ...]:
        """Where arrays begin."""
        return tuple(self._known.values())

    def data(self) -> bytes:
        """Everything stored so far."""
        return b"".join(self._chunks)
