"""Pages for browsers: the playground at / and /playground, the API documentation at /docs.

All files come from this package; the content security policy forbids others. Health probes of / get `Healthy` (serve_app.http.routes).
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

from pipeline.errors import RequestError

POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
DOCS_POLICY = f"{POLICY}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""Swagger UI adds inline styles and data: icons; scripts must come from this service."""
SITES = {"playground": POLICY, "docs": DOCS_POLICY}
"""Folders beside this file, each with an index.html."""
OPEN_PREFIXES = tuple(f"/{site}/" for site in SITES)
"""Paths below these need no key: the files are public in the source."""

mimetypes.add_type("image/webp", ".webp")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file to serve.

    Args:
        body: its bytes; compressed where `is_gzip`.
        media_type: for the browser.
        policy: content security policy.
    """

    body: bytes
    media_type: str
    policy: str
    is_gzip: bool = False

    def response(self, request: Request) -> Response:
        """The file, or 304 if the browser has this version."""
        etag = f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'
        headers = {
            "cache-control": "no-cache",
            "content-security-policy": self.policy,
            "etag": etag,
            "referrer-policy": "no-referrer",
            "vary": "accept, accept-encoding",
            "x-content-type-options": "nosniff",
        }
        if etag in request.headers.get("if-none-match", ""):  # a list; with W/ before it where a proxy has compressed the body
            return Response(status_code=304, headers=headers)
        body = self.body
        if self.is_gzip and "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
        elif self.is_gzip:
            body = gzip.decompress(body)
        return Response(body, media_type=self.media_type, headers=headers)


def wants_page(request: Request) -> bool:
    """Whether the client is a browser: it accepts text/html, which probes and curl do not ask for."""
    return "text/html" in request.headers.get("accept", "")


def add_pages(app: FastAPI) -> Asset:
    """Add the routes of both sites.

    Returns:
        The playground's page, for `/`.
    """
    assets = {site: _read_site(site, policy) for site, policy in SITES.items()}
    for site, files in assets.items():
        _add_site(app, site, files)
    return assets["playground"]["index.html"]


def _read_site(site: str, policy: str) -> dict[str, Asset]:
    folder = Path(__file__).parents[1] / site
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix().removesuffix(".gz"): _read(path, policy) for path in files}


def _read(path: Path, policy: str) -> Asset:
    is_gzip = path.suffix == ".gz"
    kind = mimetypes.guess_type(path.name.removesuffix(".gz"))[0] or "text/plain"
    charset = "; charset=utf-8" if kind.startswith("text/") else ""
    return Asset(path.read_bytes(), kind + charset, policy, is_gzip)


def _add_site(app: FastAPI, site: str, files: dict[str, Asset]) -> None:
    async def page(request: Request) -> Response:
        return files["index.html"].response(request)

    async def file(request: Request, name: str) -> Response:
        if not name:  # the page's links are relative to the path without a slash at its end
            return Response(status_code=308, headers={"location": f"../{site}"})
        if name not in files:
            raise RequestError("There is no such file.", code="not_found", status=404)
        return files[name].response(request)

    methods = ["GET", "HEAD"]
    app.add_api_route(f"/{site}", page, methods=methods, include_in_schema=False)
    app.add_api_route(f"/{site}/{{name:path}}", file, methods=methods, include_in_schema=False)
