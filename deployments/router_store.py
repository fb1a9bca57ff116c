"""What all processes of an app must agree on, kept in Ray's own store, which outlives every actor: the cluster secret,
which proves a peer of the token transport, and the settings of the router shards.

Who may join the Ray cluster may read it; nobody else learns it.
"""

import secrets

import msgspec
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from cluster.config import RouterConfig

_NAMESPACE = b"manta"
_SECRET, _CONFIG = b"cluster secret", b"router config"


def cluster_secret() -> bytes:
    """Drawn by whoever asks first."""
    _internal_kv_put(_SECRET, secrets.token_bytes(32), overwrite=False, namespace=_NAMESPACE)
    secret: bytes = _internal_kv_get(_SECRET, namespace=_NAMESPACE)
    return secret


def publish_router_config(config: RouterConfig) -> None:
    """What router shards that start from now on are configured with."""
    _internal_kv_put(_CONFIG, msgspec.json.encode(config), namespace=_NAMESPACE)


def published_router_config() -> RouterConfig:
    """The last one published; the defaults if none is."""
    stored = _internal_kv_get(_CONFIG, namespace=_NAMESPACE)
    return RouterConfig() if stored is None else msgspec.json.decode(stored, type=RouterConfig)
