"""The OpenAPI document, made from the very types that the endpoints decode and encode."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.api.schema import ErrorResponse
from cluster.gateway.endpoints import Endpoint

_ERRORS = {
    400: "A field is wrong; `param` names it",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not JSON, or is compressed",
    500: "The engine failed",
    503: "Too busy, or no replica is ready; `Retry-After` says when to try again",
    504: "The request ran out of time",
}
_DESCRIPTION = """The OpenAI API for the models served here, with the fields that vLLM's clients add.

Every answer carries `X-Request-Id` (yours, if you send one). Errors have the OpenAI error body. Fields that are not
listed are refused with `unknown_parameter`; those marked as ignored are accepted for compatibility. Of a key given
twice the last value counts.

A stream that fails ends with an event `{"error": ...}` instead of `[DONE]`; each event's `id` is
`<request>:<index of its last token>`. A client that closes its connection, or the sending half of it, gives up the
request: its work is freed within a step.
"""


def openapi_document(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """The document as plain data."""
    types: list[Any] = [ErrorResponse]
    for endpoint in endpoints:
        types += [found for found in (endpoint.body, endpoint.answer, endpoint.chunk) if found is not None]
    unique = list(dict.fromkeys(types))
    references, components = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(unique, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        for path in (endpoint.path, *endpoint.aliases):
            name = path.replace(":path}", "}")
            paths.setdefault(name, {})[endpoint.method.lower()] = _operation(endpoint, name, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Manta", "version": version, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(endpoint: Endpoint, path: str, schema_of: dict[Any, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema_of[endpoint.answer]}}
    if endpoint.chunk is not None:
        content["text/event-stream"] = {"schema": schema_of[endpoint.chunk]}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    error = {"application/json": {"schema": schema_of[ErrorResponse]}}
    for status in endpoint.error_statuses:
        responses[str(status)] = {"description": _ERRORS[status], "content": error}
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{path.replace('/', '_').replace('{', '').replace('}', '')}",
        "summary": endpoint.summary,
        "responses": responses,
    }
    if endpoint.body is not None:
        body = {"application/json": {"schema": schema_of[endpoint.body]}}
        operation["requestBody"] = {"required": True, "content": body}
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation
