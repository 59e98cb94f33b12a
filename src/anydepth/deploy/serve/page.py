"""The page of the demonstration: one file, which asks the server it came from and nobody else."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

PAGE: Final = Path(__file__).with_name("page.html")

# Tiles of the embedded sample that no detector is trained on, chosen for crowns of different sizes.
EXAMPLES: Final = (
    "yell_528000_0600_1832.jpg",
    "yell_528000_0280_2152.jpg",
    "yell_541000_0929_0395.jpg",
)
_FOLDER: Final = Path(__file__).parents[2] / "data" / "sample" / "images" / "val"


def page_routes(*, examples: bool) -> list[Route]:
    """Return the routes of the page.

    Args:
        examples: Whether pictures of the embedded sample are offered.
    """
    names = EXAMPLES if examples else ()
    content = PAGE.read_text(encoding="utf-8")
    headers = {"content-security-policy": page_policy(content), "x-content-type-options": "nosniff"}

    def page(request: Request) -> Response:
        return HTMLResponse(content, headers=headers)

    def listed(request: Request) -> Response:
        return JSONResponse(list(names))

    def example(request: Request) -> Response:
        name = request.path_params["name"]
        # A name of the list and nothing else: no path is ever made of what a request holds.
        if name not in names:
            raise HTTPException(404, "no such example")
        return FileResponse(_FOLDER / names[names.index(name)])

    return [Route("/", page), Route("/examples", listed), Route("/examples/{name}", example)]


def page_policy(content: str) -> str:
    """Return the Content-Security-Policy of a page: its own script and style, and data of its own server.

    Even if a class name of a foreign bundle broke out of its text, nothing in it would run.
    """
    scripts = [_hash(text) for text in re.findall(r"<script>(.*?)</script>", content, re.DOTALL)]
    styles = [_hash(text) for text in re.findall(r"<style>(.*?)</style>", content, re.DOTALL)]
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(scripts)}",
            f"style-src {' '.join(styles)}",
            "img-src 'self' blob: data:",
            "media-src blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
