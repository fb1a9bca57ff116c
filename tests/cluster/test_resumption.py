"""A stream cut anywhere goes on elsewhere: what the client has in the end is what it would have had."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.auth.principal import Principal
from cluster.frames import Fetch, Journal, Keep, Stored
from cluster.router.journal_store import JournalStore
from cluster.streams.stream_copies import StreamCopies
from tests.cluster.gateway_world import MODEL, live_server, until
from tests.cluster.resume_world import (
    WITH_IDS,
    GatewayInWorld,
    Received,
    Shard,
    a_gateway,
    events_of,
    uneven_chain,
    whole_of,
)

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True, "seed": 7}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "The quick brown fox", "stream": True, "seed": 7}
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
EVERY: dict[str, Any] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT | {"max_tokens": 12}),
    "completion": ("/v1/completions", TEXT | {"max_tokens": 12} | USAGE),
    "ids and logprobs": (
        "/v1/chat/completions",
        CHAT | {"max_tokens": 9, "logprobs": True, "top_logprobs": 1, "return_token_ids": True} | EVERY,
    ),
    "several answers": ("/v1/chat/completions", CHAT | {"max_tokens": 7, "n": 3} | EVERY),
    "several prompts": (
        "/v1/completions",
        TEXT | {"prompt": ["The fox", "A dog", "A cat"], "max_tokens": 6, "logprobs": 1, "echo": True} | USAGE,
    ),
    "one token": ("/v1/completions", TEXT | {"max_tokens": 1, "return_token_ids": True}),
}


async def post(gateway: GatewayInWorld, path: str, body: dict[str, Any]) -> list[Received]:
    async with gateway.client() as http:
        answer = await http.post(path, json=body, headers=WITH_IDS)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


async def get(gateway: GatewayInWorld, stream: str, last_event_id: str | None) -> httpx.Response:
    headers = {} if last_event_id is None else {"last-event-id": last_event_id}
    async with gateway.client() as http:
        return await http.get(f"/v1/streams/{stream}", headers=headers)


async def go_on(gateway: GatewayInWorld, had: list[Received], stream: str) -> list[Received]:
    answer = await get(gateway, stream, had[-1].id if had else None)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def shorten(shard: Shard, stream: str, num_entries: int) -> None:
    """As if the last entries had never reached the shard."""
    ((_, stored),) = [
        message for message in shard.store.on_fetch("x", Fetch(0, stream, "t"), shard.now) if message[0] == "x"
    ]
    assert isinstance(stored, Stored)
    shard.store.on_keep("x", Keep(stream, stored.epoch, "t", 60.0, stored.call, stored.journal[:num_entries], MODEL))


@pytest.mark.parametrize("case", CASES)
async def test_cut_after_every_event_it_goes_on_exactly(case: str) -> None:
    path, body = CASES[case]
    shard, generator = Shard(), uneven_chain()
    first, second = a_gateway("a", generator, shard), a_gateway("b", generator, shard)
    events = await post(first, path, body)
    stream, whole = events[0].json["id"], whole_of(events)
    assert all(event.id for event in events)
    for cut in range(len(events) + 1):
        had = events[:cut]
        assert whole_of(had + await go_on(second, had, stream)) == whole
        assert generator.num_open == 0


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(cut=st.integers(0, 30), copied=st.integers(0, 12))
def test_a_copy_that_lags_is_made_up_for(case: str, cut: int, copied: int) -> None:
    """However little of the stream was copied: the rest is computed again, and what the client has is not sent."""

    async def run() -> None:
        path, body = CASES[case]
        shard, generator = Shard(), uneven_chain()
        events = await post(a_gateway("a", generator, shard), path, body)
        stream = events[0].json["id"]
        shorten(shard, stream, copied)
        had = events[:cut]
        rest = await go_on(a_gateway("b", generator, shard), had, stream)
        whole, expected = whole_of(had + rest), whole_of(events)
        assert whole["choices"] == expected["choices"]
        assert whole["usage"] is None or whole["usage"]["total_tokens"] == expected["usage"]["total_tokens"]

    asyncio.run(run())


async def test_stop_strings_that_begin_before_the_cut() -> None:
    generator = uneven_chain()
    shard = Shard()
    first, second = a_gateway("a", generator, shard), a_gateway("b", generator, shard)
    text = whole_of(await post(first, "/v1/completions", TEXT | {"max_tokens": 40}))["choices"][0]["text"]
    for start in range(5, 20):
        stop = text[start : start + 6]
        body = TEXT | {"max_tokens": 40, "stop": [stop], "return_token_ids": True} | USAGE
        events = await post(first, "/v1/completions", body)
        expected = whole_of(events)
        assert expected["choices"][0]["end"] == ("stop", stop)
        for cut in range(len(events) + 1):
            rest = await go_on(second, events[:cut], events[0].json["id"])
            assert whole_of(events[:cut] + rest) == expected


class Reader:
    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()
        self.had: list[Received] = []

    async def take(self, count: int) -> list[Received]:
        """The events so far, at least so many."""
        fields: dict[str, str] = {}
        while len(self.had) < count:
            line = await anext(self._lines)
            if line:
                name, _, fields[name] = line.partition(": ")
            else:
                self.had.append(Received(fields["id"], fields["data"]))
        return self.had


@asynccontextmanager
async def reading(
    gateway: GatewayInWorld, method: str, path: str, body: dict[str, Any] | None, last_event_id: str = ""
) -> AsyncIterator[Reader]:
    """A client that takes events one by one, over a socket."""
    headers = WITH_IDS | ({"last-event-id": last_event_id} if last_event_id else {})
    async with (
        live_server(gateway.app) as url,
        httpx.AsyncClient(base_url=url) as http,
        http.stream(method, path, json=body, headers=headers) as answer,
    ):
        yield Reader(answer)


LONG = TEXT | {"max_tokens": 120, "return_token_ids": True} | USAGE


async def expected_of_long() -> dict[str, Any]:
    events = await post(a_gateway("alone", uneven_chain(), Shard()), "/v1/completions", LONG)
    return whole_of(events)


async def test_the_gateway_dies_in_the_middle_and_its_successor_too() -> None:
    shard, expected = Shard(), await expected_of_long()
    generators = [uneven_chain(hold_at=20), uneven_chain(hold_at=60), uneven_chain()]
    first, second, third = (a_gateway(name, each, shard) for name, each in zip("abc", generators, strict=True))
    async with reading(first, "POST", "/v1/completions", LONG) as reader:
        had = list(await reader.take(5))
        first.die(shard)
        async with reading(second, "GET", f"/v1/streams/{had[0].json['id']}", None, had[-1].id) as successor:
            had += await successor.take(5)
            second.die(shard)
            had += await go_on(third, had, had[0].json["id"])
    assert whole_of(had) | {"heads": 0} == expected | {"heads": 0}
    attempts = [request.attempt for generator in generators for request in generator.requests]
    assert attempts == sorted(set(attempts)), "each newer than the one before, so that an engine ends the older"


async def test_a_client_that_lost_its_connection_comes_back_to_the_same_gateway() -> None:
    shard, generator = Shard(), uneven_chain(hold_at=20)
    gateway = a_gateway("a", generator, shard)
    async with reading(gateway, "POST", "/v1/completions", LONG) as reader:
        had = list(await reader.take(5))
        assert (gateway.copies.num_running, generator.num_open) == (1, 1)
    await until(lambda: (gateway.copies.num_running, generator.num_open) == (0, 0))
    gateway = a_gateway("a", uneven_chain(), shard)
    had += await go_on(gateway, had, had[0].json["id"])
    assert whole_of(had) | {"heads": 0} == await expected_of_long() | {"heads": 0}


async def test_who_resumes_a_running_stream_ends_the_connection_that_had_it() -> None:
    shard, generator = Shard(), uneven_chain(hold_at=20)
    gateway = a_gateway("a", generator, shard)
    async with reading(gateway, "POST", "/v1/completions", LONG) as reader:
        had = await reader.take(5)
        stream = had[0].json["id"]
        async with reading(gateway, "GET", f"/v1/streams/{stream}", None, had[2].id) as taker:
            assert [event.data for event in await taker.take(2)] == [event.data for event in had[3:5]]
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await reader.take(10_000)
            await until(lambda: (gateway.copies.num_running, generator.num_open) == (1, 1))
    await until(lambda: (gateway.copies.num_running, generator.num_open) == (0, 0))


async def test_a_lost_shard_is_made_good_by_another_one() -> None:
    left, right = Shard(), Shard()
    first, second = a_gateway("a", uneven_chain(hold_at=20), left, right), a_gateway("b", uneven_chain(), left, right)
    async with reading(first, "POST", "/v1/completions", LONG) as reader:
        had = await reader.take(5)
        lost, other = (left, right) if len(left.store) else (right, left)
        assert (len(lost.store), len(other.store)) == (1, 0)
        for gateway in (first, second):
            gateway.copies.on_router_lost(0 if lost is left else 1)
        assert len(other.store) == 1
        first.die(other)
        had += await go_on(second, had, had[0].json["id"])
    assert whole_of(had) | {"heads": 0} == await expected_of_long() | {"heads": 0}


async def test_a_shard_that_comes_back_empty_is_told_again() -> None:
    shard = Shard()
    first, second = a_gateway("a", uneven_chain(hold_at=20), shard), a_gateway("b", uneven_chain(), shard)
    async with reading(first, "POST", "/v1/completions", LONG) as reader:
        had = await reader.take(5)
        shard.store = JournalStore(1 << 20)
        first.copies.on_router_lost(0)
        first.connect(shard)
        first.die(shard)
        had += await go_on(second, had, had[0].json["id"])
    assert whole_of(had) | {"heads": 0} == await expected_of_long() | {"heads": 0}


async def test_one_frame_for_all_streams_of_a_wake_up_and_ahead_of_the_client() -> None:
    shard = Shard()
    copies = StreamCopies(60.0)
    gateway = GatewayInWorld("a", a_gateway("unused", uneven_chain()).app, copies)
    gateway.connect(shard)
    running = [copies.begin(f"s{number}", "t", "m", b"call") for number in range(3)]
    order: list[int] = []
    for copy in running:
        copy.add(b"1")
        copy.add(b"2")
    asyncio.get_running_loop().call_soon(lambda: order.append(len(shard.frames)))
    await asyncio.sleep(0)
    assert order == [4], "three Keep, and one Journal before whoever was made ready after it"
    assert shard.frames[3:] == [Journal([(f"s{n}", 0, entry) for n in range(3) for entry in (b"1", b"2")])]


async def test_what_cannot_be_resumed() -> None:
    shard, generator = Shard(), uneven_chain()
    first, second = a_gateway("a", generator, shard), a_gateway("b", generator, shard)
    events = await post(first, "/v1/chat/completions", CHAT | {"max_tokens": 4, "n": 2})
    stream = events[0].json["id"]
    unknown = await get(second, "chatcmpl-unknown", None)
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "stream_not_found"
    foreign = await get(a_gateway("c", generator, shard, who=Principal(tenant="other")), stream, None)
    assert (foreign.status_code, foreign.json()) == (404, unknown.json())
    withdrawn = a_gateway("d", generator, shard, who=Principal(tenant="t", models=frozenset({"another"})))
    assert (await get(withdrawn, stream, None)).json() == unknown.json()
    for wrong in ("", "x", stream, f"{stream}:x", "other:1,1", f"{stream}:-2,1", f"{stream}:1,1;", f"{stream}:1e3,1"):
        answer = await get(second, stream, wrong)
        assert answer.status_code == 400, wrong
        assert answer.json()["error"]["param"] == "Last-Event-ID"
    for wrong in (f"{stream}:1", f"{stream}:1,1,1", f"{stream}:1,5"):
        assert (await get(second, stream, wrong)).status_code == 400, wrong
    assert (await get(second, stream, None)).status_code == 200, "which has cost the stream nothing"
    shard.now += 60.0
    expired = await get(second, stream, None)
    assert (expired.status_code, expired.json()) == (404, unknown.json())


async def test_switched_off_there_are_no_ids_and_no_endpoint() -> None:
    shard = Shard()
    gateway = a_gateway("a", uneven_chain(), shard, resume_s=0)
    events = await post(gateway, "/v1/completions", TEXT)
    assert {event.id for event in events} == {""}
    assert (await get(gateway, events[0].json["id"], None)).json()["error"]["code"] == "unknown_path"
    assert shard.frames == []


async def test_a_client_that_wants_no_ids_is_not_copied() -> None:
    shard = Shard()
    gateway = a_gateway("a", uneven_chain(), shard)
    async with gateway.client() as http:
        await http.post("/v1/completions", json=TEXT)
    assert shard.frames == []


async def test_without_a_shard_streams_run_and_cannot_be_fetched() -> None:
    gateway = a_gateway("a", uneven_chain())
    events = await post(gateway, "/v1/completions", TEXT)
    answer = await get(gateway, events[0].json["id"], None)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_a_shard_that_does_not_answer_may_have_what_the_others_have_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.streams.inquiry.ANSWER_S", 0.01)
    silent, shard = Shard(), Shard()
    silent.gateways.clear()
    generator = uneven_chain()
    first = a_gateway("a", generator, shard)
    events = await post(first, "/v1/completions", TEXT)
    second = a_gateway("b", generator, shard, silent)
    del silent.gateways["b"]
    assert whole_of(await go_on(second, [], events[0].json["id"])) == whole_of(events)
    assert (await get(second, "cmpl-unknown", None)).json()["error"]["code"] == "streams_unavailable"
    second.copies.on_live_shards({0})
    assert (await get(second, "cmpl-unknown", None)).json()["error"]["code"] == "streams_unavailable"
    second.connect(silent, 1)
    assert (await get(second, "cmpl-unknown", None)).json()["error"]["code"] == "stream_not_found"


async def test_an_end_that_is_told_without_a_token() -> None:
    """As by a gateway whose replica died between the last token and the word that it was the last."""
    generator = uneven_chain(lone_end=True)
    shard = Shard()
    first, second = a_gateway("a", generator, shard), a_gateway("b", generator, shard)
    events = await post(first, "/v1/completions", TEXT | {"max_tokens": 5, "return_token_ids": True} | USAGE)
    stream = events[0].json["id"]
    assert [event.id.rpartition(":")[2] for event in events][-3:] == ["4", "5", "end"]
    for num_entries in range(9):
        shorten(shard, stream, num_entries)
        for cut in range(len(events) + 1):
            rest = await go_on(second, events[:cut], stream)
            assert whole_of(events[:cut] + rest)["choices"] == whole_of(events)["choices"]
