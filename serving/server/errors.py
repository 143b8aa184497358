"""One JSON shape for everything that goes wrong, and one JSON line in the log for each failure.

    {"error": "what happened and what to do", "code": "queue_full", "status": 503,
     "request_id": "..."}

`error` is a string because the Open Inference Protocol wants it to be one.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from sanic import HTTPResponse, Request
from sanic.exceptions import RequestCancelled, SanicException
from sanic.handlers import ErrorHandler

from sparsec.errors import InputError, NonFiniteError, SparsecError, TooLongError
from sparsec.serving.server.metrics import RequestMetrics

REQUEST_ID = "x-request-id"

logger = logging.getLogger("sparsec.server")

# What Sanic's own exceptions are called.
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    411: "length_required",
    413: "too_large",
    415: "unsupported_media_type",
    417: "expectation_failed",
    422: "invalid_input",
    431: "headers_too_large",
    499: "client_closed",
    500: "internal",
    501: "not_implemented",
    503: "unavailable",
    504: "timeout",
}


class HttpError(Exception):
    """Ends a request with a status.

    Args:
        status: 4xx or 5xx.
        message: what happened and what to do.
        code: a word for programs; by the status when absent.
        headers: more headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or _CODES.get(status, "error")
        self.headers = dict(headers or {})


def as_http(error: BaseException) -> HttpError:
    """Any exception as one that may be shown to a client."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, TooLongError):
        return HttpError(422, str(error), "input_too_long")
    if isinstance(error, InputError):
        return HttpError(422, str(error))
    if isinstance(error, NonFiniteError):
        return HttpError(500, str(error), "nonfinite")
    if isinstance(error, RequestCancelled):
        return HttpError(499, "the client closed the connection")
    if isinstance(error, SanicException):
        status = error.status_code or 500
        headers = {k: str(v) for k, v in dict(getattr(error, "headers", None) or {}).items()}
        message = str(error) or _CODES.get(status, "error").replace("_", " ")
        if status == 413 and "header" in message.lower():
            status = 431
        return HttpError(status, message, headers=headers)
    if isinstance(error, SparsecError):
        # Its text may name files of this machine; the log has it.
        return HttpError(500, "the model could not be run; the server's log says why")
    return HttpError(500, "an unexpected error; the server's log has the request's id")


def presentable(given: str) -> str:
    """A client's id for a request if it is presentable, else one of ours."""
    return given if re.fullmatch(r"[A-Za-z0-9._:/+=-]{1,128}", given) else secrets.token_hex(8)


def request_id(request: Request) -> str:
    """The id of a request."""
    known: str | None = getattr(request.ctx, "id", None)
    if known is None:
        request.ctx.id = known = presentable(request.headers.get(REQUEST_ID) or "")
    return known


def log(
    error: BaseException, shown: HttpError, fields: Mapping[str, Any], probe: bool = False
) -> None:
    """A line about a request that failed; what caused a 5xx is in it.

    Args:
        shown: what the client gets.
        probe: it is asked again and again until it goes well.
    """
    hidden = shown.status >= 500 and str(shown) != str(error)
    level = logging.ERROR if hidden else logging.WARNING
    logger.log(
        logging.DEBUG if probe else level,
        "%s",
        f"{type(error).__name__}: {error}" if hidden else shown,
        extra={"fields": {**fields, "code": shown.code}},
        exc_info=error if hidden else None,
    )


def response(request: Request, error: BaseException) -> HTTPResponse:
    """The response to a request that failed; it is logged."""
    shown = as_http(error)
    identity = request_id(request)
    body = {
        "error": str(shown),
        "code": shown.code,
        "status": shown.status,
        "request_id": identity,
    }
    request.ctx.code = shown.code
    fields = {
        "request_id": identity,
        "method": request.method,
        "path": request.path,
        "status": shown.status,
        **({"endpoint": name} if (name := getattr(request.ctx, "endpoint", "")) else {}),
    }
    # What probes ask while models are loaded.
    log(error, shown, fields, shown.code == "not_ready" and request.method == "GET")
    return HTTPResponse(
        json.dumps(body),
        status=shown.status,
        headers={**shown.headers, REQUEST_ID: identity},
        content_type="application/json",
    )


class JsonErrors(ErrorHandler):
    """Sanic's hook for what its HTTP parser and its timeouts raise.

    Args:
        counted: the metrics of requests without an endpoint.
    """

    def __init__(self, counted: RequestMetrics) -> None:
        super().__init__()
        self._counted = counted

    def response(self, request: Request, exception: Exception) -> HTTPResponse:
        answer = response(request, exception)
        self._counted.done(answer.status, request.ctx.code, 0.0)
        return answer

    @staticmethod
    def log(request: Request, exception: Exception) -> None:
        """Nothing: `response` has logged it."""


def log_access(request: Request, answer: HTTPResponse, seconds: float) -> None:
    """A line about a request that was answered."""
    fields = {
        "request_id": request_id(request),
        "method": request.method,
        "path": request.path,
        "status": answer.status,
        "seconds": round(seconds, 6),
        "client": request.ip,
    }
    logger.info("request", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """A JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "pid": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: int = logging.INFO) -> None:
    """JSON lines on standard error, from this server and from Sanic."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("sparsec.server", "sanic.root", "sanic.error", "sanic.server"):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
        # Sanic tells of every start and stop of a worker; only its failures are of interest.
        log.setLevel(level if name == "sparsec.server" else logging.WARNING)
