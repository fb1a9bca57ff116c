"""What became of a call can be asked at any gateway, and goes to the log and to traces."""

import json
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.calls.record import Caller, CallRecord
from cluster.config import TracesConfig
from deployments.json_logs import event_logger, log_lines
from deployments.tracing import CallTraces
from tests.cluster.calls.test_report import migrated
from tests.cluster.gateway_world import client, until
from tests.deployments.gateways_world import gateways
from tests.deployments.serving_world import serving_world

BODY = {"model": "m", "prompt": "Canary", "max_tokens": 5}


async def found(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    answers: list[httpx.Response] = []

    async def is_there() -> bool:
        answers.append(await http.get(f"/v1/requests/{name}"))
        return answers[-1].status_code == 200

    for _ in range(200):
        if await is_there():
            break
    report: dict[str, Any] = answers[-1].json()
    return report


async def test_any_gateway_answers_by_call_id_and_by_request_id() -> None:
    async with serving_world(num_shards=2) as world, gateways(world) as (here, there):
        async with client(here.app) as http:
            answer = await http.post("/v1/completions", json=BODY, headers={"x-request-id": "mine"})
            call_id = answer.json()["id"]
            await until(lambda: not here.calls.running)
            at_home = await found(http, call_id)
        async with client(there.app) as http:
            assert await found(http, call_id) == at_home
            assert await found(http, "mine") == at_home
            assert (await http.get("/v1/requests/nothing")).status_code == 404
    assert (at_home["request_id"], at_home["outcome"], at_home["output_tokens"]) == ("mine", "ok", 5)
    assert at_home["total_s"] == pytest.approx(sum(at_home["phases_s"].values()), abs=1e-4)
    assert [attempt["replica"] for attempt in at_home["attempts"]] == ["r0"]
    assert "Canary" not in json.dumps(at_home)


def test_a_line_is_json_whatever_a_client_has_put_into_it(capfd: pytest.CaptureFixture[str]) -> None:
    event_logger().info("call", request_id='a"\r\n\x1b[31m\u2028b')
    assert log_lines().settle(5.0)
    line = capfd.readouterr().err
    assert len(line.splitlines()) == 1
    assert json.loads(line)["request_id"] == 'a"\r\n\x1b[31m\u2028b'


def spans_of(record: CallRecord, sample: float) -> dict[str, Any]:
    exporter = InMemorySpanExporter()
    traces = CallTraces(TracesConfig(endpoint="http://collector:4317", sample=sample), exporter, "g")
    traces.ended(record)
    traces.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_call_has_five_spans_in_its_callers_trace() -> None:
    spans = spans_of(migrated(), sample=0.0)  # the caller's is sampled
    assert set(spans) == {"manta.call", "manta.prepare", "manta.queue", "manta.prefill", "manta.decode"}
    call = spans.pop("manta.call")
    assert format(call.context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    assert format(call.parent.span_id, "016x") == "b7ad6b7169203331"
    assert all(span.parent.span_id == call.context.span_id for span in spans.values())
    lengths = {name: round((span.end_time - span.start_time) / 1e9, 3) for name, span in spans.items()}
    assert lengths == {"manta.prepare": 0.5, "manta.queue": 0.5, "manta.prefill": 1.0, "manta.decode": 3.0}
    assert [event.name for event in call.events] == ["attempt lost"]
    assert call.attributes["gen_ai.usage.input_tokens"] == 7


@pytest.mark.parametrize(("sample", "names"), [(0.0, set()), (1.0, {"manta.call", "manta.prepare", "manta.queue"})])
def test_a_refused_call_without_a_trace_is_sampled_as_configured(sample: float, names: set[str]) -> None:
    record = CallRecord("c", "m", Caller(arrived_at=1.0), 1.5)
    record.end("server_is_overloaded", 503, 2.0)
    assert set(spans_of(record, sample)) == names
