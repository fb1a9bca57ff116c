"""What Ray must find in the environment before it is imported, so that this process can join a cluster.

The cluster that `manta serve` starts is on loopback addresses and asks for this user's token. Ray writes the token
when it first starts a cluster, but reads whether to use it, and whether loopback is meant, from the environment alone,
and only while it is imported.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

AUTH_MODE = "RAY_AUTH_MODE"
#: "0": a node's address is 127.0.0.1, and an address on loopback is not taken for one of the host's outer addresses.
OUTER_ADDRESSES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def prepare_to_join(address: str | None) -> None:
    """Set what joining `address` needs; None or "auto" is `RAY_ADDRESS`, or else the cluster that runs on this host."""
    if (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault(AUTH_MODE, "token")
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS")
    on_loopback = any(map(is_loopback, running_clusters())) if address in (None, "auto") else is_loopback(address or "")
    if on_loopback:
        os.environ.setdefault(OUTER_ADDRESSES, "0")


def is_loopback(address: str) -> bool:
    """Whether `host:port` is on this machine's loopback."""
    host, _, _ = address.rpartition(":")
    return host in ("localhost", "[::1]") or host.startswith("127.")


def running_clusters() -> Iterable[str]:
    """Addresses of the clusters whose head is a process of this host."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            prefix = "--gcs-address="
            yield from (word.removeprefix(prefix) for word in process.info["cmdline"] or () if word.startswith(prefix))
