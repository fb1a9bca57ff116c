"""The running Ray cluster as `manta status`, `drain` and `deploy` join it; what is wrong with it, said in one line."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from deployments.commands.local_cluster import router_status
from deployments.router_actor import NAMESPACE
from engine.errors import MantaError


class NotServing(MantaError):
    """There is nothing to talk to; `why` names the remedy."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """Within the block this process is part of the cluster at `address`. Raises `NotServing`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not _answers(address):
        raise NotServing(f"nothing listens at {address!r}; is `manta serve` running?")
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError) as error:
        raise NotServing(f"no Ray cluster at {address!r} ({error}); is `manta serve` running?") from None
    try:
        yield
    finally:
        ray.shutdown()


def app_status() -> dict[str, Any]:
    """`router_status` of an app that runs; raises `NotServing` if none does."""
    status = router_status()
    if status is None:
        raise NotServing("the cluster runs, but no Manta app is on it; start one with `manta serve`")
    return status


def _answers(address: str, timeout_s: float = 3.0) -> bool:
    """Whether something listens at `host:port`: Ray would try for minutes. Other forms are for Ray to judge."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s):
            return True
    except OSError:
        return False
