"""The baseline: the chain streamed the way Ray Serve's documentation shows it, without Manta.

An ingress behind Serve's HTTP proxy calls an engine deployment by a streaming handle and passes the tokens on as a
`StreamingResponse`. Ray Serve's own settings, but health looked at as often as it can sensibly be. A command like
`manta serve`: it says `Ray at`, `ready on`, and ends on SIGINT.
"""

import argparse
import asyncio
import json
import logging
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import StreamingResponse

from engine.chain_startup import VOCAB_SIZE
from scripts.chaos_run.workload import chain_tokens

APP = "plain"
MAX_ONGOING = 1000


@serve.deployment(max_ongoing_requests=MAX_ONGOING, health_check_period_s=1.0, health_check_timeout_s=2.0)
class Engine:
    """One engine: a token of every request each `step_s`."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    async def generate(self, prompt: list[int], max_tokens: int) -> AsyncIterator[int]:
        for token in chain_tokens(prompt, max_tokens, VOCAB_SIZE):
            await asyncio.sleep(self._step_s)
            yield token


@serve.deployment(max_ongoing_requests=MAX_ONGOING, num_replicas=2)
class Ingress:
    """JSON in, server-sent events out, in the form of the completions API."""

    def __init__(self, engine: DeploymentHandle) -> None:
        self._engine = engine.options(stream=True)

    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self._events(await request.json()), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        count, last = 0, body["max_tokens"] - 1
        async for token in self._engine.generate.remote(body["prompt"], body["max_tokens"]):
            reason = "length" if count == last else None
            choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": reason}
            yield f"id: s:{count}\ndata: {json.dumps({'choices': [choice]})}\n\n".encode()
            count += 1
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--step", type=float, required=True)
    args = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print(f"Ray at {ray.get_runtime_context().gcs_address}", flush=True)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(http_options={"host": "127.0.0.1", "port": args.port}, logging_config=quiet)
    light = {"num_cpus": 0.01}
    engine = Engine.options(num_replicas=args.replicas, ray_actor_options=light).bind(args.step)
    serve.run(Ingress.options(ray_actor_options=light).bind(engine), name=APP)
    print(f"ready on http://127.0.0.1:{args.port}", flush=True)
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
