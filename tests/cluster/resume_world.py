"""Gateways over shards that keep their streams, in one process without sockets; engines that emit in uneven groups."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp

from cluster.auth.principal import Principal
from cluster.config import GatewayConfig
from cluster.frames import Frame, FrameDecoder, FromRouter, Stored, Taken, ToRouter, encode
from cluster.gateway.app import build_gateway
from cluster.generation import Generator
from cluster.router.journal_store import JournalStore
from cluster.streams.stream_copies import StreamCopies
from engine.chain_executor import next_chain_token
from engine.request import FinishReason, GenerateRequest, TokenChunk, TokenLogprobs
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, client, served_model

VOCAB = served_model().tokenizer.vocab_size
WITH_IDS = {"accept": "text/event-stream"}


class Shard:
    """A journal store, its clock, and the gateways that are connected to it."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.store = JournalStore(max_bytes)
        self.now = 0.0
        self.gateways: dict[str, GatewayInWorld] = {}
        self.frames: list[Frame] = []

    def post(self, outbox: list[tuple[str, FromRouter]], shard: int) -> None:
        for name, message in outbox:
            if name in self.gateways:
                asyncio.get_running_loop().call_soon(self.gateways[name].hear, shard, message)


class _Link:
    """What one gateway says to one shard, as bytes in between."""

    def __init__(self, shard: Shard, number: int, name: str) -> None:
        self._shard, self._number, self._name = shard, number, name
        self._decoder: FrameDecoder[Any] = FrameDecoder(ToRouter)
        self.is_open = True

    def send(self, frame: Frame) -> None:
        if self.is_open:
            for heard in self._decoder.feed(encode(frame)):
                self._shard.frames.append(heard)
                self._shard.post(self._shard.store.on_frame(self._name, heard, self._shard.now), self._number)


@dataclass
class GatewayInWorld:
    name: str
    app: ASGIApp
    copies: StreamCopies
    links: list[_Link] = field(default_factory=list)

    def hear(self, shard: int, frame: FromRouter) -> None:
        match frame:
            case Stored():
                self.copies.on_stored(shard, frame)
            case Taken():
                self.copies.on_taken(frame)

    def connect(self, shard: Shard, number: int = 0) -> None:
        link = _Link(shard, number, self.name)
        self.links.append(link)
        shard.gateways[self.name] = self
        self.copies.on_router(number, link)

    def die(self, *shards: Shard) -> None:
        """As `kill -9` would have it: nothing more is said, and the shards see the connection end."""
        for link in self.links:
            link.is_open = False
        for shard in shards:
            del shard.gateways[self.name]
            shard.store.on_gateway_lost(self.name, shard.now)

    def client(self) -> httpx.AsyncClient:
        return client(self.app)


def a_gateway(
    name: str, generator: Generator, *shards: Shard, who: Principal | None = None, **settings: Any
) -> GatewayInWorld:
    config = GatewayConfig(**settings)
    copies = StreamCopies(config.resume_s, max(1, len(shards)))

    async def identify(scope: Any) -> Principal:
        return who or Principal(tenant="t")

    app = build_gateway({MODEL: served_model()}, generator, config, identify, copies)
    gateway = GatewayInWorld(name, app, copies)
    for number, shard in enumerate(shards):
        gateway.connect(shard, number)
    return gateway


def uneven_chain(lone_end: bool = False, hold_at: int | None = None) -> ScriptedGenerator:
    """The chain, its tokens in groups whose sizes depend on the attempt.

    `lone_end`: the end is told after the last token, `hold_at`: of a stream only so many tokens come, or a few more.
    """

    async def script(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        rng = random.Random(f"{request.sampling.seed}/{request.attempt}")
        tokens = [*request.prompt_token_ids, *request.output_token_ids]
        index, most = len(request.output_token_ids), request.sampling.max_tokens
        wants = request.sampling.logprobs is not None
        while index < most:
            await (asyncio.sleep(0) if hold_at is None or index < hold_at else asyncio.Event().wait())
            new: list[int] = []
            for _ in range(min(rng.randint(1, 4), most - index)):
                new.append(next_chain_token(tokens, VOCAB, (0, 1, 2)))
                tokens.append(new[-1])
            yield TokenChunk(
                request.request_id,
                request.attempt,
                index,
                new,
                [TokenLogprobs(-token / VOCAB, [(token, -0.5)]) for token in new] if wants else None,
                FinishReason.LENGTH if index + len(new) == most and not lone_end else None,
                _prompt_logprobs(request) if index == 0 else None,
                num_cached_tokens=3 if index == 0 else 0,
            )
            index += len(new)
        if lone_end:
            yield TokenChunk(request.request_id, request.attempt, most, [], finish=FinishReason.LENGTH)

    return ScriptedGenerator(script)


def _prompt_logprobs(request: GenerateRequest) -> list[TokenLogprobs | None] | None:
    if request.sampling.prompt_logprobs is None:
        return None
    return [None, *(TokenLogprobs(-1.0, [(token, -1.0)]) for token in request.prompt_token_ids[1:])]


@dataclass(frozen=True)
class Received:
    """One event as a client has it."""

    id: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def events_of(text: str) -> list[Received]:
    """The events of a stream that has come to its end; `[DONE]` is not among them."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [_event(block) for block in events]


def _event(block: str) -> Received:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    return Received(fields.get("id", ""), fields["data"])


def whole_of(events: list[Received]) -> dict[str, Any]:
    """What a client makes of a stream: everything but how it was grouped."""
    choices: dict[int, dict[str, Any]] = {}
    usage: Any = None
    heads = set()
    for event in events:
        chunk = event.json
        assert "error" not in chunk, chunk
        heads.add(json.dumps([chunk[key] for key in ("id", "created", "model", "system_fingerprint")]))
        for piece in chunk["choices"]:
            whole = choices.setdefault(piece["index"], {"text": "", "logprobs": [], "ids": [], "openings": 0})
            delta = piece.get("delta", {})
            whole["text"] += piece.get("text") or delta.get("content") or ""
            whole["ids"] += piece.get("token_ids") or []
            whole["logprobs"] += _per_token(piece.get("logprobs"))
            whole["openings"] += "role" in delta or "prompt_token_ids" in piece
            assert "end" not in whole, "nothing follows the end of a choice"
            if piece["finish_reason"] is not None:
                whole["end"] = (piece["finish_reason"], piece["stop_reason"])
        if chunk.get("usage") is not None:
            assert usage is None or chunk["usage"]["completion_tokens"] >= usage["completion_tokens"]
            usage = chunk["usage"]
    return {"choices": choices, "usage": usage, "heads": heads}


def _per_token(logprobs: Any) -> list[Any]:
    if logprobs is None:
        return []
    if "content" in logprobs:
        return list(logprobs["content"])
    return list(
        zip(*(logprobs[key] for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True)
    )
