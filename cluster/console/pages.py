"""The console's page and its two files. They hold no data, so anybody may have them; what they show asks for a key."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.types import Receive, Scope, Send

_FOLDER = Path(__file__).parent
#: Nothing from elsewhere, no script but ours, and in nobody's frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
PAGES = {
    "/console": ("console.html", "text/html; charset=utf-8"),
    "/console/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/console/console.css": ("console.css", "text/css; charset=utf-8"),
}


def page(path: str) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The endpoint that answers with that file."""
    name, media_type = PAGES[path]
    body = (_FOLDER / name).read_bytes()
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"content-security-policy", _POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-cache"),
    ]

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return run
