"""A gateway with a small trained tokenizer, called in process or over a live socket on 127.0.0.1."""

import asyncio
import functools
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import tokenizers
import uvicorn
from starlette.types import ASGIApp
from tokenizers import decoders, models, pre_tokenizers, trainers

from cluster.config import GatewayConfig
from cluster.gateway.app import build_gateway
from cluster.gateway.http_listener import listener_settings
from cluster.generation import Generator, RequestContext
from cluster.text.served_model import ServedModel
from engine.config import EngineInfo
from engine.request import GenerateRequest, TokenChunk
from tests.cluster.local_engine import LocalGenerator, engine_info

MODEL = "small"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
CORPUS = [
    "The quick brown fox jumps over the lazy dog. ",
    "Ein schöner Tag für eine große Überraschung, naïve Café-Gäste! ",
    "東京は日本の首都です。 Привет, мир! 👩‍👩‍👧 🎉 ",
] * 20


@functools.cache
def model_directory() -> Path:
    """A model directory as a gateway reads it: byte-level BPE, ChatML."""
    directory = Path(tempfile.mkdtemp(prefix="small-model-"))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@functools.cache
def served_model() -> ServedModel:
    return ServedModel.load(MODEL, str(model_directory()))


class ScriptedGenerator:
    """Answers every request with chunks that the test computes from it; sees when a stream is closed."""

    def __init__(self, script: Callable[[GenerateRequest], AsyncIterator[TokenChunk]], **facts: Any) -> None:
        self.info: EngineInfo | None = engine_info(served_model().tokenizer.vocab_size, **facts)
        self._script = script
        self.requests: list[GenerateRequest] = []
        self.num_open = 0

    def model_info(self, model: str) -> EngineInfo | None:
        return self.info

    async def stream(self, request: GenerateRequest, context: RequestContext) -> AsyncIterator[TokenChunk]:
        self.requests.append(request)
        self.num_open += 1
        try:
            async for chunk in self._script(request):
                if context.on_chunk is not None:
                    context.on_chunk(chunk, "r0")
                yield chunk
        finally:
            self.num_open -= 1


def gateway(generator: Generator, models: Mapping[str, ServedModel] | None = None, **settings: Any) -> ASGIApp:
    return build_gateway(models or {MODEL: served_model()}, generator, GatewayConfig(**settings))


def client(app: ASGIApp) -> httpx.AsyncClient:
    """A client without a socket in between."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


@asynccontextmanager
async def local_generator(**facts: Any) -> AsyncIterator[LocalGenerator]:
    """A real engine with the chain executor."""
    delay = facts.pop("step_delay_s", 0.0)
    generator = LocalGenerator(engine_info(served_model().tokenizer.vocab_size, **facts), delay)
    try:
        yield generator
    finally:
        generator.close()


@asynccontextmanager
async def live_server(app: ASGIApp) -> AsyncIterator[str]:
    """The app behind our listener on 127.0.0.1; gives its address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(listener_settings(app))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await serving


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that happens elsewhere."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what it waits for knows of no event
            await asyncio.sleep(0.002)
