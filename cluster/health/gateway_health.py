"""GatewayHealth: keeps a `HealthBoard` true: looks at every model, and probes those that nobody else tries."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from cluster.errors import ApiError, Overloaded, RateLimited
from cluster.generation import RequestContext
from cluster.health.board import HealthBoard
from cluster.health.model_health import ModelHealth, Probe, Sight
from cluster.metrics import declared
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.streams.dispatcher import Dispatcher
from engine.request import GenerateRequest, SamplingParams

LOOK_S = 0.2
PROBE_S = 5.0
TENANT = "(probe)"  #: no client's: a verified tenant's name has no brackets
_ONE_TOKEN = SamplingParams(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True)


class GatewayHealth:
    """`board` is what is known."""

    def __init__(self, models: Sequence[str], dispatcher: Dispatcher, metrics: GatewayMetrics) -> None:
        self.board = HealthBoard(models)
        self._dispatcher, self._metrics = dispatcher, metrics
        self._models: Mapping[str, ModelHealth] = {model: ModelHealth() for model in models}
        self._unready: Mapping[str, str] = dict.fromkeys(models, "not tried yet")
        self._stuck: list[str] = []
        self._looked_at = 0.0
        self._has_left = False
        self._probes: set[asyncio.Task[None]] = set()

    def on_tick(self, now: float) -> None:
        """Call ten times a second, in the event loop."""
        if now - self._looked_at >= LOOK_S and not self._has_left:
            self._looked_at = now
            self._look(now)
        self.board.turned(self._unready, self._stuck)

    def _look(self, now: float) -> None:
        """At every model. O(replicas and requests)."""
        num_waiting = self._dispatcher.num_waiting()
        for name, model in self._models.items():
            if model.look(self._sight(name, num_waiting[name]), now):
                probe = asyncio.create_task(self._probe(name, model))
                self._probes.add(probe)
                probe.add_done_callback(self._probes.discard)
            self._metrics.instruments.number(declared.READY, name).value = float(not model.unready)
        self._unready = {name: model.unready for name, model in self._models.items()}
        self._stuck = [f"{name}: {model.stuck}" for name, model in self._models.items() if model.stuck]

    def _sight(self, model: str, num_waiting: int) -> Sight:
        standing = self._dispatcher.standing(model)
        return Sight(
            len(self._dispatcher.live_shards),
            standing.num_usable,
            num_waiting,
            self._metrics.calls.num_tokens(model),
            standing.progress,
            standing.patience_s,
        )

    async def _probe(self, name: str, model: ModelHealth) -> None:
        """One token by the way that every request takes."""
        before, why = self._dispatcher.standing(name).progress, ""
        request = GenerateRequest(request_id=f"probe-{secrets.token_hex(8)}", prompt_token_ids=[0], sampling=_ONE_TOKEN)
        context = RequestContext(model=name, tenant=TENANT, timeout_s=PROBE_S)
        outcome = Probe.FAILED
        try:
            stream: Any = self._dispatcher.stream(request, context)
            async with aclosing(stream):
                async for _ in stream:
                    outcome = Probe.PASSED
        except ApiError as error:
            has_moved = self._dispatcher.standing(name).progress != before
            why = f"a request of one token failed: {error.message}"
            outcome = Probe.BUSY if has_moved or isinstance(error, RateLimited | Overloaded) else Probe.FAILED
        self._metrics.instruments.number(declared.PROBES, name, outcome).value += 1
        model.probed(outcome, why, asyncio.get_running_loop().time())

    def leave(self) -> None:
        """Never ready again; what is tried is given up, so that nothing of it is waited for."""
        self.board.leave()
        self._has_left = True
        for probe in self._probes:
            probe.cancel()
