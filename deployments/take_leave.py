"""How a replica and a gateway take their leave: what `deployments.leave.Leave` runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cluster.errors import GatewayClosing
from cluster.replica.replica_drain import FLUSH_S, DrainStep, ReplicaDrain
from cluster.streams.dispatcher import Dispatcher
from deployments.http_door import HttpDoor
from deployments.replica_server import ReplicaServer
from engine.engine_loop import EngineLoop

POLL_S = 0.1
logger = logging.getLogger("manta.leave")


async def drain_replica(
    server: ReplicaServer, engine: EngineLoop, drain: ReplicaDrain, find_others: Callable[[], Awaitable[bool]]
) -> None:
    """Admit nothing, let streams end, hand the others back, and flush. `find_others`: could another replica go on?"""
    now = asyncio.get_running_loop().time
    logger.info("the replica leaves; it has %d requests", server.num_requests)
    server.leave()
    while True:
        has_others = drain.asks_for_others(now()) and await find_others()
        step = drain.next(now(), server.num_requests, has_others)
        if step is DrainStep.END:
            break
        if step is DrainStep.HAND_BACK:
            logger.info("the replica hands %d requests back", server.num_requests)
            engine.hand_back()
        await asyncio.sleep(POLL_S)
    await server.close_gently(FLUSH_S)
    await asyncio.to_thread(engine.close)


async def drain_gateway(dispatcher: Dispatcher, door: HttpDoor | None, drain_s: float) -> None:
    """Accept nobody, let streams run for `drain_s`, then end them with an error that says so."""
    now = asyncio.get_running_loop().time
    logger.info("the gateway leaves; it has %d requests", dispatcher.num_in_flight)
    if door is not None:
        door.stop_accepting()
    until = now() + drain_s
    while now() < until:
        if not dispatcher.num_in_flight and (door is None or not door.num_connections):
            break
        await asyncio.sleep(POLL_S)
    dispatcher.end_all(GatewayClosing("this gateway has ended before the request did; another one goes on"))
    if door is not None:
        await door.close()
