"""The page `/docs` (Swagger UI, served from here, nothing is fetched from elsewhere) and `/openapi.json`."""

from pathlib import Path
from typing import Any

import msgspec
import swagger_ui_bundle
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Route

_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Manta API</title>
  <link rel="icon" type="image/png" href="docs/favicon-32x32.png">
  <link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
  <div id="api"></div>
  <script src="docs/swagger-ui-bundle.js"></script>
  <script>SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });</script>
</body>
</html>
"""


class ApiDocs:
    """Serves one OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = msgspec.json.encode(document)
        self._directory = Path(swagger_ui_bundle.swagger_ui_path)

    def routes(self) -> list[BaseRoute]:
        """The page, the document and the page's files."""
        files = [Route(f"/docs/{name}", self._file, methods=["GET"]) for name in _FILES]
        return [Route("/openapi.json", self._openapi), Route("/docs", self._page), *files]

    async def _openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_PAGE)

    async def _file(self, request: Request) -> Response:
        return FileResponse(self._directory / request.url.path.rsplit("/", 1)[-1])
