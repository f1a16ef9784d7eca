"""``/console``: a page and its files, which hold no data and need no key.

The page asks for keys itself and reads ``/v1`` with them. Nothing in it comes from elsewhere, and
its policy lets a browser neither fetch nor run anything that this server does not hold.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from leanmoe.wire import CONSOLE_PATH
from leanmoe_server.error_shapes import error_response

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGE = "console.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page as it is sent."""

    content: bytes
    kind: str
    tag: str


def _assets() -> dict[str, Asset]:
    found = {}
    for file in files(__package__).joinpath("assets").iterdir():
        suffix = file.name.rpartition(".")[2]
        if suffix in _KINDS:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.name] = Asset(content, _KINDS[suffix], tag)
    return found


# Read once: a request names one of these and never a path.
ASSETS = _assets()


def _sent(request: Request, name: str) -> Response:
    asset = ASSETS.get(name)
    if asset is None:
        return error_response(404, "the console has no such file", "not_found_error")
    headers = {**_HEADERS, "ETag": asset.tag}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.kind)


async def show_page(request: Request) -> Response:
    """The console."""
    return _sent(request, _PAGE)


async def show_file(request: Request) -> Response:
    """A style sheet or script of the console."""
    return _sent(request, request.path_params["name"])


async def without_slash(request: Request) -> Response:
    """To the page: its addresses are relative, for servers behind a prefix."""
    return RedirectResponse(f"../{CONSOLE_PATH.strip('/')}", status_code=308, headers=_HEADERS)


def add_pages(app: FastAPI) -> None:
    """The routes of the page, which are no part of the API and its document."""
    for path, route in {
        CONSOLE_PATH: show_page,
        f"{CONSOLE_PATH}/": without_slash,
        f"{CONSOLE_PATH}/{{name}}": show_file,
    }.items():
        app.add_api_route(path, route, methods=["GET", "HEAD"], include_in_schema=False)
