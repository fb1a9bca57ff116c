"""A PNG of one or several finished simulations, drawn with matplotlib (the extra `simulate`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deployments.simulation.records import End
from deployments.simulation.results import busiest
from deployments.simulation.world import World
from engine.errors import ConfigError

_NUM_BINS = 60


def plot(worlds: Mapping[str, World], path: Path) -> None:
    """TTFT and queue time as distributions, TTFT and queue length over time, and the replicas' work; a colour a run."""
    figure, axes = _figure()
    for name, world in worlds.items():
        _draw_times(axes[0], axes[1], name, world)
        _draw_over_time(axes[2], axes[3], name, world)
        _draw_replicas(axes[4], name, world)
        _draw_tenants(axes[5], name, world)
    labels = (
        ("time to first token, s", "share of requests"),
        ("time in the queue, s", "share of requests"),
        ("time, s", "TTFT p50 and p99, s"),
        ("time, s", "waiting requests, all shards"),
        ("replicas, busiest first", "share of the time computing"),
        ("tenant", "TTFT p99, s"),
    )
    for axis, (below, beside) in zip(axes, labels, strict=True):
        axis.set_xlabel(below)
        axis.set_ylabel(beside)
        axis.grid(alpha=0.3)
    for axis in axes[:2]:
        axis.set_xlim(1e-3, max(1.0, axis.get_xlim()[1]))
    axes[3].set_ylim(0.0, max(1.0, axes[3].get_ylim()[1]))
    axes[4].set_ylim(0.0, 1.05)
    axes[5].set_yscale("log")
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=72)


def _figure() -> tuple[Any, Any]:
    """Six places in two rows, drawn without a display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        remedy = "plots need matplotlib: pip install 'manta-serve[simulate]'"
        raise ConfigError("plot", "matplotlib", remedy) from None
    figure = Figure(figsize=(12, 6.5))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(2, 3).T.ravel()


def _draw_times(ttft_axis: Any, queue_axis: Any, name: str, world: World) -> None:
    """Shares of the requests that took at most so long."""
    records = world.records
    done = np.asarray(records.end) == End.DONE
    arrived = np.asarray(records.arrived)[done]
    for axis, column in ((ttft_axis, records.first), (queue_axis, records.granted)):
        values = np.sort(np.asarray(column)[done] - arrived)
        picked = np.unique(np.linspace(0, max(0, len(values) - 1), 400).astype(int))
        if len(values):
            axis.plot(values[picked], (picked + 1) / len(values), label=name)
        axis.set_xscale("log")


def _draw_over_time(ttft_axis: Any, queue_axis: Any, name: str, world: World) -> None:
    records = world.records
    done = np.asarray(records.end) == End.DONE
    arrived = np.asarray(records.arrived)[done]
    ttft = np.asarray(records.first)[done] - arrived
    edges = np.linspace(0.0, float(arrived.max()) if len(arrived) else 1.0, _NUM_BINS + 1)
    bins = np.clip(np.digitize(arrived, edges) - 1, 0, _NUM_BINS - 1)
    filled = [index for index in range(_NUM_BINS) if (bins == index).any()]
    middles = [(edges[index] + edges[index + 1]) / 2 for index in filled]
    line = ttft_axis.plot(middles, [np.percentile(ttft[bins == index], 50) for index in filled])[0]
    upper = [np.percentile(ttft[bins == index], 99) for index in filled]
    ttft_axis.plot(middles, upper, color=line.get_color(), linestyle=":")
    queue_axis.plot([s.at for s in records.samples], [s.num_queued for s in records.samples])


def _draw_replicas(axis: Any, name: str, world: World) -> None:
    seconds = max(1e-9, world.queue.now)
    axis.plot([busy / seconds for busy in busiest(world.replicas)])


def _draw_tenants(axis: Any, name: str, world: World) -> None:
    records = world.records
    done = np.asarray(records.end) == End.DONE
    ttft = np.asarray(records.first) - np.asarray(records.arrived)
    tenant = np.asarray(records.tenant)
    names = sorted(records.tenants)
    values = []
    for tenant_name in names:
        mine = ttft[done & (tenant == records.tenants[tenant_name])]
        values.append(float(np.percentile(mine, 99)) if len(mine) else 0.0)
    axis.plot(names, values, marker="o", linestyle="none")
