"""Instruments: the counters and histograms of one process. Cheap to add to: a scrape pays for their rendering."""

from bisect import bisect_left

from cluster.metrics.declared import Kind, Metric
from cluster.metrics.snapshot import Sample

MOST_NAMES = 100
OTHER = "other"


class Number:
    """A counter, or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Histogram:
    """Counts by bucket; a value on a bound belongs below it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Instruments:
    """By metric and label values; made when they are first asked for, which may be kept."""

    def __init__(self) -> None:
        self._numbers: dict[Metric, dict[tuple[str, ...], Number]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], Histogram]] = {}

    def number(self, metric: Metric, *labels: str) -> Number:
        """A counter or gauge."""
        assert metric.kind is not Kind.HISTOGRAM and len(labels) == len(metric.labels), metric.name
        found = self._numbers.setdefault(metric, {})
        if labels not in found:
            found[labels] = Number()
        return found[labels]

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        assert metric.kind is Kind.HISTOGRAM and len(labels) == len(metric.labels), metric.name
        found = self._histograms.setdefault(metric, {})
        if labels not in found:
            found[labels] = Histogram(metric.buckets)
        return found[labels]

    def families(self) -> dict[str, list[Sample]]:
        """All of them, for a snapshot."""
        return {
            metric.name: [Sample(list(labels), [number.value]) for labels, number in series.items()]
            for metric, series in self._numbers.items()
        } | {
            metric.name: [Sample(list(labels), [found.sum, *found.counts]) for labels, found in series.items()]
            for metric, series in self._histograms.items()
        }


class FirstNames:
    """Bounds a label: the first `most` names are kept, all others are `other`."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name
