"""The OpenAPI document, made from the very types that the endpoints decode and encode."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.api.schema import ErrorResponse
from cluster.auth.access import Access
from cluster.gateway.endpoints import Endpoint
from cluster.gateway.error_style import OPENAI_STYLE

_ERRORS = {
    400: "A field is wrong; `param` names it",
    401: "No valid API key or token, where the server asks for one",
    403: "Not with this API key or token",
    404: "No such model, or no such stream",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not JSON, or is compressed",
    422: "A field is wrong",
    424: "The engine failed",
    429: "Too busy; `Retry-After` says when to try again",
    500: "The engine failed",
    503: "Too busy, or no replica is ready; `Retry-After` says when to try again",
    504: "The request ran out of time",
}
_ACCESS_STATUSES = {Access.OPEN: (), Access.USER: (401,), Access.METRICS: (401, 403), Access.ADMIN: (401, 403)}
_DESCRIPTION = """The OpenAI API for the models served here, with the fields that vLLM's clients add.

Every answer carries `X-Request-Id` (yours, if you send one). Errors have the OpenAI error body. Fields that are not
listed are refused with `unknown_parameter`; those marked as ignored are accepted for compatibility. Of a key given
twice the last value counts.

A stream that fails ends with an event `{"error": ...}` instead of `[DONE]`. A client that closes its connection, or the
sending half of it, gives up the request: its work is freed within a step. A client whose `Accept` header names
`text/event-stream` gets events with an `id`, and can go on with a broken stream: `GET /v1/streams/{stream}` with the id
as `Last-Event-ID`, on any gateway; `{stream}` is the `id` that the chunks hold.
"""


def openapi_document(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """The document as plain data."""
    types: list[Any] = [ErrorResponse]
    for endpoint in endpoints:
        found = (endpoint.body, endpoint.answer, *endpoint.chunks, endpoint.errors.schema)
        types += [type_ for type_ in found if type_ is not None]
    unique = list(dict.fromkeys(types))
    references, components = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(unique, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        for path in endpoint.paths:
            name = path.replace(":path}", "}")
            paths.setdefault(name, {})[endpoint.method.lower()] = _operation(endpoint, name, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Manta", "version": version, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(endpoint: Endpoint, path: str, schema_of: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.answer is not None:
        content["application/json"] = {"schema": schema_of[endpoint.answer]}
    if endpoint.text:
        content[endpoint.text] = {"schema": {"type": "string"}}
    if endpoint.chunks:
        content["text/event-stream"] = {"schema": _event(endpoint, schema_of)}
    responses: dict[str, Any] = {
        str(status): {"description": "The answer", "content": content} for status in endpoint.answer_statuses
    }
    for status in (*endpoint.error_statuses, *_ACCESS_STATUSES[endpoint.access]):
        error = {"application/json": {"schema": _error(endpoint, status, schema_of)}}
        responses[str(status)] = {"description": _ERRORS[status], "content": error}
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{path.replace('/', '_').replace('{', '').replace('}', '')}",
        "summary": endpoint.summary,
        "responses": responses,
        "security": [] if endpoint.access is Access.OPEN else [{"bearer": []}, {}],
    }
    if endpoint.body is not None:
        body = {"application/json": {"schema": schema_of[endpoint.body]}}
        operation["requestBody"] = {"required": True, "content": body}
    text = {"schema": {"type": "string"}}
    parameters = [{"name": name, "in": "path", "required": True, **text} for name in re.findall(r"{(\w+)}", path)]
    for name, description in endpoint.headers.items():
        parameters.append({"name": name, "in": "header", "description": description, **text})
    if parameters:
        operation["parameters"] = parameters
    return operation


def _error(endpoint: Endpoint, status: int, schema_of: dict[Any, Any]) -> Any:
    """The endpoint's own, but for what is found out before it: who asks, and that there is no such path."""
    own, general = schema_of[endpoint.errors.schema], schema_of[ErrorResponse]
    if status == 401 or own == general:
        return general
    return {"anyOf": [own, general]} if status == 404 else own


def _event(endpoint: Endpoint, schema_of: dict[Any, Any]) -> dict[str, Any]:
    """One event of a stream: its `data` is a chunk, an error, or OpenAI's mark of the end."""
    held = [schema_of[type_] for type_ in (*endpoint.chunks, endpoint.errors.schema)]
    json_text = {"contentMediaType": "application/json", "contentSchema": {"anyOf": held}}
    ends = [{"const": "[DONE]"}] if endpoint.errors is OPENAI_STYLE else []
    data = {"type": "string", "anyOf": [*ends, json_text]}
    return {"type": "object", "required": ["data"], "properties": {"data": data, "id": {"type": "string"}}}
