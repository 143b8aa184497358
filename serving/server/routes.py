"""Routes of other servers' forms: who answers them, and what `/openapi.json` says of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import BaseModel
from sanic import HTTPResponse, Request

from sparsec.serving.pipelines.base import Pipeline
from sparsec.serving.server.v2 import Handler, Service


@dataclass(frozen=True)
class Route:
    """A path of a family.

    Attributes:
        path: as it is, without a part that varies.
        method: GET or POST.
        work: answers a request.
        summary: for people.
        kinds: the tasks of which an endpoint must be served; none: any will do.
        body: what is to be sent.
        example: of that, without the model's name.
    """

    path: str
    method: str
    work: Callable[[Any, Request], Awaitable[HTTPResponse]]
    summary: str
    kinds: tuple[type[Pipeline], ...] = ()
    body: type[BaseModel] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)


def find(routes: Sequence[Route], service: Service, path: str) -> dict[str, Handler]:
    """Handlers of a path by method."""
    return {row.method: partial(row.work, service) for row in routes if row.path == path}
