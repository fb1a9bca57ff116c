"""HTTP manners: every answer has an id and every error the OpenAI body, whatever was asked."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

import cluster.gateway.http_exchange
from cluster.auth.principal import Principal
from cluster.config import Edge, GatewayConfig
from cluster.errors import ApiError, Overloaded
from cluster.gateway.app import build_gateway
from cluster.gateway.http_exchange import header
from engine.request import FinishReason, GenerateRequest, TokenChunk
from tests.cluster.gateway_world import (
    MODEL,
    ScriptedGenerator,
    client,
    gateway,
    live_server,
    local_generator,
    served_model,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
COMPLETION = {"model": MODEL, "prompt": "Hi", "max_tokens": 2}


async def two_tokens(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [70])
    yield TokenChunk(request.request_id, 0, 1, [71], None, FinishReason.LENGTH)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error body, after checking that it is one."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return body["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_path"),
        ("GET", "/v1/completions/", 404, "unknown_path"),
        ("POST", "/v1/chat", 404, "unknown_path"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("PUT", "/v1/models/small", 405, "method_not_allowed"),
        ("POST", "/docs", 405, "method_not_allowed"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/docs/../../etc/passwd", 404, "unknown_path"),
        ("GET", "/docs/index.html", 404, "unknown_path"),
    ],
)
async def test_paths_and_methods(method: str, path: str, status: int, code: str) -> None:
    async with client(gateway(ScriptedGenerator(two_tokens))) as http:
        response = await http.request(method, path)
    assert error_of(response, status)["code"] == code
    assert ("allow" in response.headers) == (status == 405)


async def test_allow_names_the_methods() -> None:
    async with client(gateway(ScriptedGenerator(two_tokens))) as http:
        assert (await http.get("/v1/completions")).headers["allow"] == "POST"
        assert (await http.post("/v1/models")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json", "content-encoding": "deflate, gzip"},
    ],
)
async def test_only_plain_json_is_taken(path: str, headers: dict[str, str]) -> None:
    async with client(gateway(ScriptedGenerator(two_tokens))) as http:
        response = await http.post(path, content=b"{}", headers=headers)
    assert error_of(response, 415)["code"] == "unsupported_media_type"


async def test_a_charset_may_be_given() -> None:
    async with client(gateway(ScriptedGenerator(two_tokens))) as http:
        headers = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
        response = await http.post("/v1/completions", content=json.dumps(COMPLETION), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("chunked", [True, False])
async def test_large_bodies_are_refused(chunked: bool) -> None:
    async def parts() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with client(gateway(ScriptedGenerator(two_tokens), max_body_bytes=1024)) as http:
        content = parts() if chunked else b" " * 10_000
        response = await http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert error_of(response, 413)["code"] == "body_too_large"


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.gateway.http_exchange, "BODY_TIMEOUT_S", 0.05)
    async with live_server(gateway(ScriptedGenerator(two_tokens))) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = await reader.read(4096)
        if answer.startswith(b"HTTP/1.1 100"):
            answer = await reader.read(4096)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("two words", False), ("", False)]
)
async def test_request_ids(given: str, kept: bool) -> None:
    async with client(gateway(ScriptedGenerator(two_tokens))) as http:
        for path in ("/health", "/nothing"):
            answered = (await http.get(path, headers={"x-request-id": given})).headers["x-request-id"]
            assert (answered == given) == kept
            assert kept or re.fullmatch(r"req_[0-9a-f]{24}", answered)


@pytest.mark.parametrize("body", [COMPLETION, CHAT])
async def test_an_unknown_model_is_not_found(body: dict[str, Any]) -> None:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    async with client(gateway(ScriptedGenerator(two_tokens))) as http:
        response = await http.post(path, json=body | {"model": "other"})
    error = error_of(response, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_without_a_replica_the_client_is_told_when_to_come_back() -> None:
    generator = ScriptedGenerator(two_tokens)
    generator.info = None
    async with client(gateway(generator)) as http:
        response = await http.post("/v1/completions", json=COMPLETION)
        assert error_of(response, 503)["code"] == "no_ready_replica"
        assert int(response.headers["retry-after"]) >= 1
        card = (await http.get("/v1/models/small")).json()
        assert card["max_model_len"] is None


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_before_the_first_token_has_its_status(stream: bool) -> None:
    async def refused(request: GenerateRequest) -> Any:
        raise Overloaded("The queue is full.", None, 7.2)
        yield

    async with client(gateway(ScriptedGenerator(refused))) as http:
        response = await http.post("/v1/completions", json=COMPLETION | {"stream": stream})
    assert error_of(response, 503)["code"] == "server_is_overloaded"
    assert response.headers["retry-after"] == "8"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unforeseen_error_tells_nothing_of_itself(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: GenerateRequest) -> Any:
        raise ZeroDivisionError("a secret")
        yield

    async with client(gateway(ScriptedGenerator(broken))) as http:
        response = await http.post("/v1/completions", json=COMPLETION | {"stream": stream})
    assert error_of(response, 500)["code"] == "internal_error"
    assert "secret" not in response.text
    assert "a secret" in caplog.text


@pytest.mark.parametrize(
    ("finish", "status", "code"),
    [(FinishReason.ERROR, 500, "engine_failed"), (FinishReason.ABORT, 504, "deadline_exceeded")],
)
async def test_what_the_engine_gave_up_is_an_error(finish: FinishReason, status: int, code: str) -> None:
    async def given_up(request: GenerateRequest) -> Any:
        yield TokenChunk(request.request_id, 0, 0, [70])
        yield TokenChunk(request.request_id, 0, 1, [], None, finish, None, 0, "file.py: boom")

    async with client(gateway(ScriptedGenerator(given_up))) as http:
        whole = await http.post("/v1/completions", json=COMPLETION)
        assert error_of(whole, status)["code"] == code
        streamed = await http.post("/v1/completions", json=COMPLETION | {"stream": True})
    assert streamed.status_code == 200
    events = [line for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[-1][6:])["error"]["code"] == code
    assert "[DONE]" not in streamed.text
    assert "boom" not in streamed.text


async def test_the_tenant_salts_the_prefix_cache() -> None:
    async def identify(scope: Any) -> Principal:
        return Principal(tenant=header(scope, b"x-test-tenant") or "nobody")

    async with local_generator() as generator:
        app = build_gateway({MODEL: served_model()}, generator, GatewayConfig(request_timeout_s=12.0), identify)
        async with client(app) as http:
            for path, body in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)):
                await http.post(path, json=body, headers={"x-test-tenant": "acme"})
        assert [request.cache_salt for request in generator.requests] == ["acme", "acme"]
        assert [(context.model, context.tenant, context.timeout_s) for context in generator.contexts] == [
            (MODEL, "acme", 12.0)
        ] * 2


async def test_what_several_attempts_computed_is_counted_once() -> None:
    async def twice(request: GenerateRequest) -> Any:
        yield TokenChunk(request.request_id, 0, 0, [70], None, None, None, 1)
        yield TokenChunk(request.request_id, 1, 1, [71], None, FinishReason.LENGTH, None, 2)

    async with client(gateway(ScriptedGenerator(twice))) as http:
        usage = (await http.post("/v1/completions", json=COMPLETION)).json()["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}


async def test_a_text_as_user_or_cache_key_names_a_session_of_the_tenant() -> None:
    async def identify(scope: Any) -> Principal:
        return Principal(tenant=header(scope, b"x-test-tenant") or "nobody")

    async with local_generator() as generator:
        http = client(build_gateway({MODEL: served_model()}, generator, GatewayConfig(), identify))
        for body in (
            CHAT | {"user": "u"},
            CHAT | {"user": {"no": "text"}},
            CHAT | {"user": "u", "prompt_cache_key": "k"},
        ):
            await http.post("/v1/chat/completions", json=body)
        for tenant in ("nobody", "acme"):
            body = COMPLETION | {"user": "u"}
            await http.post("/v1/completions", json=body, headers={"x-test-tenant": tenant})
        first, none, by_key, same, other = (context.session for context in generator.contexts)
    assert none == "" and first == same
    assert len({first, by_key, other, none}) == 4


async def test_a_header_names_the_tenant_only_where_it_is_configured() -> None:
    async with local_generator() as generator:
        for settings in ({}, {"tenant_header": "X-Tenant", "edge": Edge.DIRECT}):
            async with client(gateway(generator, **settings)) as http:
                for headers in ({"x-tenant": "acme"}, {}):
                    await http.post("/v1/completions", json=COMPLETION, headers=headers)
                refused = await http.post("/v1/completions", json=COMPLETION, headers={"x-tenant": "a b"})
        assert [context.tenant for context in generator.contexts] == ["default"] * 3 + ["acme", "default"]
    assert error_of(refused, 400)["param"] == "X-Tenant"


async def test_health_and_version() -> None:
    async with client(gateway(ScriptedGenerator(two_tokens))) as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert set((await http.get("/version")).json()) == {"version"}
        assert (await http.head("/health")).status_code == 200


async def test_a_second_answer_is_never_begun() -> None:
    """An error after the answer's start must break the connection, not look like a whole answer."""

    async def breaks(request: GenerateRequest) -> Any:
        yield TokenChunk(request.request_id, 0, 0, [70])
        raise ApiError("broken")

    async with client(gateway(ScriptedGenerator(breaks))) as http:
        response = await http.post("/v1/completions", json=COMPLETION | {"stream": True})
    assert response.status_code == 200
    assert response.text.count('{"error":') == 1
    assert "[DONE]" not in response.text
