"""The `x-ratelimit-*` headers, as OpenAI has them: of requests and of tokens, the limit that has the least left."""

import math
from collections.abc import Iterable

from cluster.quotas.bucket import WINDOW_S


def limit_headers(limits: Iterable[tuple[str, float, float]]) -> list[tuple[bytes, bytes]]:
    """(`requests` or `tokens`, capacity, usable) of every limit that was asked; `reset` is when it will be full."""
    tightest: dict[str, tuple[float, float]] = {}
    for kind, capacity, usable in limits:
        if kind not in tightest or usable < tightest[kind][1]:
            tightest[kind] = (capacity, usable)
    headers = []
    for kind, (capacity, usable) in tightest.items():
        reset_s = max(0.0, capacity - usable) / capacity * WINDOW_S
        for name, value in (
            ("limit", f"{capacity:.0f}"),
            ("remaining", f"{max(0, math.floor(usable + 1e-6))}"),
            ("reset", duration(reset_s)),
        ):
            headers.append((f"x-ratelimit-{name}-{kind}".encode(), value.encode()))
    return headers


def duration(seconds: float) -> str:
    """As `6m0s`, `1s` or `120ms`, rounded up."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
