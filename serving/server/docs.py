"""A page to try out what is served, which needs no network: Swagger UI on `/openapi.json`."""

from __future__ import annotations

import functools
import importlib.util
import mimetypes
from pathlib import Path

from sanic import HTTPResponse, Request

from sparsec.serving.server.errors import HttpError

# What the page loads; everything comes from this server.
ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "favicon-16x16.png")
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)

# Links are relative: the server may be behind a proxy, under any path.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sparsec</title>
<link rel="stylesheet" href="FOLDER/swagger-ui.css">
<link rel="icon" type="image/png" sizes="32x32" href="FOLDER/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<script src="FOLDER/swagger-ui-bundle.js"></script>
<script src="FOLDER/start.js"></script>
</body>
</html>
"""

START = """const here = document.currentScript.src;
window.onload = () => {
  window.ui = SwaggerUIBundle({
    url: new URL("../openapi.json", here).href, dom_id: "#page", deepLinking: true,
    validatorUrl: null, defaultModelsExpandDepth: 0, tryItOutEnabled: true,
  });
};
"""


async def page(request: Request) -> HTTPResponse:
    """`GET /docs`."""
    _folder()
    text = PAGE.replace("FOLDER", "." if request.path.endswith("/") else "docs")
    return HTTPResponse(
        text, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY}
    )


async def asset(request: Request) -> HTTPResponse:
    """`GET /docs/...`: what the page loads."""
    name = request.path.rpartition("/docs/")[2]
    if name == "start.js":
        return HTTPResponse(START, content_type="text/javascript; charset=utf-8")
    if name not in ASSETS:
        raise HttpError(404, f"there is nothing at {request.path}")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return HTTPResponse(
        _asset(name), content_type=kind, headers={"Cache-Control": "public, max-age=86400"}
    )


@functools.cache
def _asset(name: str) -> bytes:
    return (_folder() / name).read_bytes()


def _folder() -> Path:
    """Where Swagger UI's files are: in a package of which nothing else is used."""
    found = importlib.util.find_spec("flask_swagger_ui")
    if found is None or found.origin is None:
        raise HttpError(
            501, "/docs needs flask-swagger-ui: pip install 'sparsec[serve]'; /openapi.json works"
        )
    return Path(found.origin).parent / "dist"
