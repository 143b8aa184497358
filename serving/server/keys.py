"""API keys: what a client has to send with a prediction, if any are set.

They come from the settings and from a file with a key a line, which is read again when it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from sparsec.errors import InputError
from sparsec.paths import user_path
from sparsec.serving.server.config import checked_keys

logger = logging.getLogger("sparsec.server")

# Headers that a key may come in besides Authorization; the second is Azure's.
HEADERS = ("x-api-key", "api-key")

# Paths that need no key: what probes, Prometheus and browsers ask for.
OPEN = frozenset([
    "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/v2/health/live",
    "/v2/health/ready",
])  # fmt: skip

_READY = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/ready")

_Stamp = tuple[int, int, int]


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key: those above, and what has a token of its own."""
    if method == "OPTIONS" or path in OPEN or path.startswith("/docs/"):
        return True
    if path == "/endpoints" or path.startswith("/endpoints/"):
        return method not in ("GET", "HEAD")  # changes need the admin token
    return bool(_READY.fullmatch(path))


class Keys:
    """The keys that are accepted; none at all are needed if there are neither keys nor a file.

    Args:
        fixed: keys that stay.
        file: with more of them, a key a line; empty lines and what follows # are left out.

    Raises:
        InputError: a key is none, or the file cannot be read or has none.
    """

    def __init__(self, fixed: Iterable[str] = (), file: str | Path | None = None) -> None:
        self._fixed = [_digest(key) for key in checked_keys(fixed, "api_keys")]
        self._file = user_path(file) if file else None
        self._stamp = self._look()
        self._known = [*self._fixed, *self._read()]
        if self._file and not self._known:
            raise InputError(f"{self._file}: there is no key in it")

    @property
    def needed(self) -> bool:
        """Whether requests need a key."""
        return bool(self._fixed or self._file)

    def refresh(self) -> None:
        """Read the file again if it has changed.  While it cannot be read, keys stay as they are;
        if it has none, none of it is accepted any more."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = [*self._fixed, *self._read()]
        except InputError as error:
            logger.error("API keys stay as they are: %s", error)
            return
        logger.info("API keys read again: there are %d", len(self._known))

    def refusal(self, header: Callable[[str], str | None]) -> str:
        """Why a request may not pass; "" if it may.

        Args:
            header: gives a header of the request by its name, in small letters.
        """
        if not self.needed:
            return ""
        given = _given(header)
        # All are compared, whichever it is: time shall not tell.
        if sum(hmac.compare_digest(_digest(given), known) for known in self._known):
            return ""
        what = "this API key is not known" if given else "an API key is needed"
        return f"{what}: send Authorization: Bearer KEY"

    def _look(self) -> _Stamp | None:
        if self._file is None:
            return None
        try:
            info = self._file.stat()
        except OSError:
            return None
        return info.st_ino, info.st_mtime_ns, info.st_size

    def _read(self) -> list[bytes]:
        if self._file is None:
            return []
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the API keys {self._file}: {error}") from error
        keys = (line.partition("#")[0].strip() for line in lines)
        return [_digest(key) for key in checked_keys(filter(None, keys), str(self._file))]


def _given(header: Callable[[str], str | None]) -> str:
    """The key that a request has; "" if it has none."""
    scheme, _, value = (header("authorization") or "").strip().partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return next((key for name in HEADERS if (key := (header(name) or "").strip())), "")


def _digest(key: str) -> bytes:
    """Of equal length for all keys, as comparing in constant time needs it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
