"""Every call is admitted, written down and told of, whichever way it came and however it ends."""

import asyncio
from typing import Any

import pytest

from cluster.api.handle_api import HandleApi
from cluster.auth.principal import Principal
from cluster.calls.calls import Calls
from cluster.calls.record import Caller, CallRecord
from cluster.config import GatewayConfig
from cluster.errors import EngineFailed, RateLimited
from cluster.gateway.app import build_gateway
from engine.request import FinishReason, GenerateRequest, TokenChunk
from tests.cluster.dispatcher_desk import Desk, started
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, client, live_server, served_model, until

BODY = {"model": MODEL, "prompt": "Hi", "max_tokens": 2}


class Ledger:
    """Admits all but the tenant `broke`; keeps what it is told."""

    def __init__(self) -> None:
        self.began_calls: list[CallRecord] = []
        self.ended_calls: list[CallRecord] = []
        self.calls = Calls(self, [self])

    async def admit(self, record: CallRecord) -> None:
        if record.tenant == "broke":
            raise RateLimited("nothing is left", None, 7.0)
        record.headers.append((b"x-left", b"%d" % (100 - record.num_prompt_tokens - record.max_output_tokens)))

    def default_output(self, tenant: str, model: str, num_prompt_tokens: int) -> int | None:
        return None

    def began(self, record: CallRecord) -> None:
        self.began_calls.append(record)

    def ended(self, record: CallRecord) -> None:
        self.ended_calls.append(record)

    def app(self, generator: Any, tenant: str = "acme") -> Any:
        async def identify(scope: Any) -> Principal:
            return Principal(tenant=tenant)

        return build_gateway({MODEL: served_model()}, generator, GatewayConfig(), identify, calls=self.calls)


async def two_tokens(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [70])
    yield TokenChunk(request.request_id, 0, 1, [71], None, FinishReason.LENGTH)


async def broken(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [70])
    raise EngineFailed("no more")


async def endless(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [70])
    await asyncio.Event().wait()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_an_answer_is_written_down_and_its_head_says_what_admission_said(stream: bool, n: int) -> None:
    ledger = Ledger()
    async with client(ledger.app(ScriptedGenerator(two_tokens))) as http:
        answer = await http.post("/v1/completions", json={**BODY, "stream": stream, "n": n})
    assert answer.status_code == 200
    [record] = ledger.ended_calls
    assert ledger.began_calls == [record]
    assert (record.tenant, record.model, record.caller.way) == ("acme", MODEL, "/v1/completions")
    assert (record.outcome, record.status, record.num_choices) == ("ok", 200, n)
    assert (record.num_prompt_tokens, record.max_output_tokens) == (2, 2 * n)
    assert answer.headers["x-left"] == str(100 - 2 - 2 * n)
    assert record.caller.request_id == answer.headers["x-request-id"]
    assert record.arrived_at <= record.prepared_at <= (record.ended_at or 0.0)
    assert not ledger.calls.running


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_not_admitted_reaches_no_engine(stream: bool) -> None:
    ledger, generator = Ledger(), ScriptedGenerator(two_tokens)
    async with client(ledger.app(generator, "broke")) as http:
        answer = await http.post("/v1/completions", json={**BODY, "stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert (generator.requests, ledger.began_calls) == ([], [])
    assert [(record.outcome, record.status) for record in ledger.ended_calls] == [("rate_limit_exceeded", 429)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_written_down(stream: bool) -> None:
    ledger = Ledger()
    async with client(ledger.app(ScriptedGenerator(broken))) as http:
        await http.post("/v1/completions", json={**BODY, "stream": stream})
    assert [(record.outcome, record.status) for record in ledger.ended_calls] == [("engine_failed", 500)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_written_down(stream: bool) -> None:
    ledger = Ledger()
    async with live_server(ledger.app(ScriptedGenerator(endless))) as address:
        host, port = address.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "%b", "prompt": "Hi", "stream": %b}' % (MODEL.encode(), b"true" if stream else b"false")
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        writer.write(head % len(body) + body)
        await until(lambda: len(ledger.calls.running) == 1)
        writer.close()
        await until(lambda: len(ledger.ended_calls) == 1)
    assert (ledger.ended_calls[0].outcome, ledger.ended_calls[0].status) == ("client_left", 499)
    assert not ledger.calls.running


class Broken:
    """A sink that fails at everything."""

    def began(self, record: CallRecord) -> None:
        raise OSError(28, "No space left on device")

    ended = began


@pytest.mark.parametrize("stream", [False, True])
async def test_a_sink_that_fails_costs_no_answer_and_the_others_nothing(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    ledger.calls = Calls(ledger, [Broken(), ledger])
    async with client(ledger.app(ScriptedGenerator(two_tokens))) as http:
        for _ in range(2):
            answer = await http.post("/v1/completions", json={**BODY, "stream": stream})
            assert answer.status_code == 200 and "error" not in answer.text
    assert [record.outcome for record in ledger.ended_calls] == ["ok", "ok"] and len(ledger.began_calls) == 2
    assert ledger.calls.sink_failures == {"Broken": 4}
    assert caplog.text.count("Broken fails") == 1


async def test_the_handle_takes_the_same_way() -> None:
    ledger = Ledger()
    api = HandleApi({MODEL: served_model()}, ScriptedGenerator(two_tokens), GatewayConfig(), ledger.calls)
    await api.generate("Hi", tenant="acme")
    with pytest.raises(RateLimited):
        await api.generate("Hi", tenant="broke")
    assert [record.outcome for record in ledger.ended_calls] == ["ok", "rate_limit_exceeded"]


async def test_attempts_are_written_down_with_what_ended_them() -> None:
    desk, record = Desk(num_replicas=2), CallRecord("c", "m", Caller(), 0.0)
    record.num_choices = 1
    task = await started(desk, record=record)
    desk.tokens(0, 5)
    desk.lose("r1")
    desk.grant("r2", attempt=1)
    desk.tokens(1, 6, attempt=1, replica_id="r2", finish=FinishReason.STOP)
    await task
    first, second = record.attempts
    assert (first.replica_id, second.replica_id) == ("r1", "r2")
    assert "lost" in first.why
    assert second.why == ""
    assert (record.num_output_tokens, record.num_migrations) == (2, 1)
    times = [first.granted_at, first.first_token_at, first.ended_at, second.granted_at, second.first_token_at]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]
    assert (record.granted_at, record.first_token_at) == (first.granted_at, first.first_token_at)
