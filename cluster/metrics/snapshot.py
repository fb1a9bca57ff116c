"""Snapshot: the numbers of one process at one moment, as they travel from process to process."""

import msgspec

from cluster.metrics.declared import DECLARED, Kind, Metric, Source

_COUNTED = {metric.name for metric in DECLARED if metric.kind is not Kind.GAUGE}


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One series. `values`: the number, or a histogram's sum and its count in each bucket, the infinite one last."""

    labels: list[str]  #: values of the metric's labels, without the source's
    values: list[float]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """What `process` counts, by metric name. `age_s`: so old it is when it is sent."""

    source: Source
    process: str
    families: dict[str, list[Sample]]
    age_s: float = 0.0

    def of_the_dead(self) -> "Snapshot":
        """What is still true when the process is gone: what it has counted."""
        counted = {name: samples for name, samples in self.families.items() if name in _COUNTED}
        return msgspec.structs.replace(self, families=counted)


class Families:
    """Builds a snapshot's families."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """One number."""
        self.samples.setdefault(metric.name, []).append(Sample(list(labels), [value]))


def newest(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Of each process the youngest: several shards may know it."""
    found: dict[tuple[str, str], Snapshot] = {}
    for snapshot in snapshots:
        key = (snapshot.source, snapshot.process)
        known = found.get(key)
        if known is None or snapshot.age_s < known.age_s:
            found[key] = snapshot
    return list(found.values())
