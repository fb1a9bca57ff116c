"""The text format of Prometheus (0.0.4), rendered from snapshots one family at a time."""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from cluster.metrics.declared import DECLARED, Kind, Metric
from cluster.metrics.snapshot import Sample, Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LINES_AT_ONCE = 200  #: rendered in about a quarter of a millisecond


def render(snapshots: Iterable[Snapshot]) -> Iterator[bytes]:
    """In pieces, so that whoever writes them can let others run in between."""
    snapshots = list(snapshots)
    for metric in DECLARED:
        lines = [f"# HELP {metric.name} {_escape_help(metric.help)}", f"# TYPE {metric.name} {metric.kind}"]
        num_head = len(lines)
        for snapshot in snapshots:
            for sample in snapshot.families.get(metric.name, ()):
                lines += _lines(metric, snapshot.process, sample)
                if len(lines) >= LINES_AT_ONCE:
                    yield _joined(lines)
                    lines, num_head = [], 0
        if len(lines) > num_head:
            yield _joined(lines)


def _joined(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _lines(metric: Metric, process: str, sample: Sample) -> list[str]:
    pairs = zip(metric.all_labels, (process, *sample.labels), strict=True)
    labels = ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)
    if metric.kind is not Kind.HISTOGRAM:
        return [f"{metric.name}{{{labels}}} {_number(sample.values[0])}"]
    total, *counts = sample.values
    bounds = [*map(_number, metric.buckets), "+Inf"]
    cumulated = list(accumulate(counts))
    return [
        *(
            f'{metric.name}_bucket{{{labels},le="{bound}"}} {count:.0f}'
            for bound, count in zip(bounds, cumulated, strict=True)
        ),
        f"{metric.name}_sum{{{labels}}} {_number(total)}",
        f"{metric.name}_count{{{labels}}} {cumulated[-1]:.0f}",
    ]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.strip().replace("\\", "\\\\").replace("\n", "\\n")
