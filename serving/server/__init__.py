"""Pipelines on HTTP: `sparsec serve`.

A supervisor starts workers; each has an event loop with Sanic (`app`), the endpoints (`registry`),
and a thread that runs their models on batches of whatever is waiting (`batching`).
"""

from __future__ import annotations

from sparsec.errors import InputError

try:
    import prometheus_client  # noqa: F401
    import sanic  # noqa: F401
    import yaml  # noqa: F401
except ModuleNotFoundError as missing:
    raise InputError(
        f"the server needs {missing.name}, which is not installed: pip install 'sparsec[serve]'"
    ) from None

from sparsec.serving.server.config import EndpointConfig, ServerConfig
from sparsec.serving.server.supervisor import ServerError, Supervisor

__all__ = ["EndpointConfig", "ServerConfig", "ServerError", "Supervisor"]
