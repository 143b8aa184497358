"""Plain data as JSON, in the one way that everything this server writes goes through."""

from __future__ import annotations

import codecs
from typing import Any

import orjson
from pydantic import BaseModel

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def dumps(value: Any) -> bytes:
    """UTF-8 without spaces.  Arrays become lists, numbers of float32 in as many digits as those
    need; NaN and infinity, which JSON does not have, null: as MLServer and KServe write them, and
    what numpy reads as NaN again."""
    return orjson.dumps(value, default=_plain, option=_OPTIONS)


def without_mark(body: bytes) -> bytes:
    """A body without UTF-8's byte order mark, which some clients write and JSON does not have."""
    return body.removeprefix(codecs.BOM_UTF8)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return value.tolist() if hasattr(value, "tolist") else str(value)
