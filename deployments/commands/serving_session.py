"""What `manta serve` does: a model over HTTP until Ctrl-C, with every phase of the start shown."""

import signal
import threading
import time
from typing import Any

import httpx
import msgspec
import ray
from ray import serve
from ray.serve import RunTarget
from ray.serve.schema import ApplicationStatus
from rich.console import Console

from cluster.config import MantaConfig
from deployments.app import APP_NAME, build_app
from deployments.commands.local_cluster import local_ray, router_status, start_serve, stop_app
from deployments.commands.placement import gateway_urls, require_reachable
from deployments.commands.room import RoomWatch, require_room
from deployments.commands.start_progress import StartProgress
from engine.errors import MantaError

POLL_S = 0.2


class StartFailed(MantaError):
    """The app did not become ready; `why` is what Serve or a replica said."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return self.why


def serve_until_stopped(config: MantaConfig, address: str | None, start_timeout_s: float) -> int:
    """Start (or join) a cluster, serve, and take everything down on Ctrl-C or SIGTERM. Returns the exit code."""
    progress = StartProgress(Console(stderr=True, highlight=False))
    progress.say("starting Ray")
    with local_ray(config, address):
        require_reachable(config)
        if address is None:
            require_room(config)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray's start, which sets handlers of its own
            signal.signal(number, lambda *_: _stop_or_insist(stop))
        try:
            progress.say(f"Ray at {ray.get_runtime_context().gcs_address}")
            start_serve(config)
            progress.say("starting the app")
            serve.run_many([RunTarget(build_app(config), name=APP_NAME)], wait_for_applications_running=False)
            if not _wait_ready(config, progress, stop, start_timeout_s):
                return 130
            _greet(config, progress)
            while not stop.wait(POLL_S):
                pass
        finally:
            progress.say("stopping")
            if address is not None:
                stop_app()  # a cluster of our own ends with everything on it
    progress.say("stopped")
    return 0


def _stop_or_insist(stop: threading.Event) -> None:
    """The first signal asks; a second one interrupts whatever waits."""
    if stop.is_set():
        raise KeyboardInterrupt
    stop.set()


def _wait_ready(config: MantaConfig, progress: StartProgress, stop: threading.Event, timeout_s: float) -> bool:
    """Until every replica has announced itself and HTTP answers; False when asked to stop."""
    wanted = sum(model.replicas for model in config.models)
    until, room = time.monotonic() + timeout_s, RoomWatch(config, progress)
    while not stop.wait(POLL_S):
        status = router_status() or {}
        progress.show(status.get("starting", {}))
        if len(status.get("replicas", [])) >= wanted and _http_ready(config):
            return True
        raise_failure()
        room.look()
        if time.monotonic() > until:
            why = room.blame("give more time with --start-timeout")
            raise StartFailed(f"not ready after {timeout_s:.0f} s; {why}")
    return False


def _http_ready(config: MantaConfig) -> bool:
    """Whether every gateway answers."""
    urls = gateway_urls(config)
    try:
        return bool(urls) and all(httpx.get(f"{url}/health", timeout=2.0).status_code == 200 for url in urls)
    except httpx.HTTPError:
        return False


def raise_failure() -> None:
    """Serve retries a failing constructor without end; its first message is what the user needs."""
    app: Any = serve.status().applications.get(APP_NAME)
    if app is None:
        return
    failing = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
    for name, deployment in app.deployments.items():
        if app.status in failing or "exception" in (deployment.message or "").lower():
            raise StartFailed(f"{name}: {_last_line(deployment.message or app.message)}")


def _last_line(message: str) -> str:
    """The error itself out of Serve's report of a traceback."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "Refused" in line or "BadCheckpoint" in line]
    return (errors or lines or ["the deployment failed"])[-1]


def _greet(config: MantaConfig, progress: StartProgress) -> None:
    name = config.models[0].served_name
    body = msgspec.json.encode({"model": name, "messages": [{"role": "user", "content": "Tell me about the sea."}]})
    urls = gateway_urls(config)
    key = '-H "Authorization: Bearer $MANTA_API_KEY" ' if config.auth.is_on else ""
    progress.say(f"[bold green]ready[/bold green] on {', '.join(urls)}  (Ctrl-C stops)")
    if config.gateway.grpc_port:
        progress.say(f"gRPC on {config.gateway.host}:{config.gateway.grpc_port}")
    progress.say(f"the fleet at work: {urls[0]}/console")
    print(
        f"curl {urls[0]}/v1/chat/completions {key}-H 'Content-Type: application/json' -d '{body.decode()}'", flush=True
    )
