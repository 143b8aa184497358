"""Plain data as JSON, in the one way that everything this server writes goes through."""

from __future__ import annotations

import codecs
from typing import Any

from pydantic_core import to_json


def dumps(value: Any) -> bytes:
    """UTF-8 without spaces.  Arrays become lists; NaN and infinity, which JSON does not have, null:
    as MLServer and KServe write them, and what numpy reads as NaN again."""
    return to_json(value, fallback=_plain, inf_nan_mode="null")


def without_mark(body: bytes) -> bytes:
    """A body without UTF-8's byte order mark, which some clients write and JSON does not have."""
    return body.removeprefix(codecs.BOM_UTF8)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
