"""What is declared is sound, and what is rendered says just what was counted, whatever the labels hold."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics.declared import CALLS, DECLARED, GRANTS, SHORT, TOKEN_GAP, Kind, Metric, Source
from cluster.metrics.exposition import LINES_AT_ONCE, render
from cluster.metrics.instruments import OTHER, FirstNames, Instruments
from cluster.metrics.snapshot import Snapshot, newest


@pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric.name)
def test_names_and_labels_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert re.fullmatch(r"manta_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert not {"le", "request", "request_id", "job", "instance"} & set(metric.all_labels)
    assert len(set(metric.all_labels)) == len(metric.all_labels)
    assert metric.help.endswith((".", " "))


def test_each_name_is_declared_once() -> None:
    assert len({metric.name for metric in DECLARED}) == len(DECLARED)


@given(st.text(), st.floats(min_value=0, max_value=1e15), st.lists(st.floats(min_value=0, max_value=1e6), max_size=30))
def test_prometheus_reads_what_was_counted(label: str, count: float, gaps: list[float]) -> None:
    instruments = Instruments()
    instruments.number(CALLS, "m", label, "ok").value = count
    histogram = instruments.histogram(TOKEN_GAP, "m")
    for gap in gaps:
        histogram.observe(gap)
    page = b"".join(render([Snapshot(Source.GATEWAY, "g", instruments.families())])).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    [calls] = families["manta_requests"].samples
    assert (calls.labels["tenant"], calls.value) == (label, count)
    read = {(s.name, s.labels.get("le")): s.value for s in families[TOKEN_GAP.name].samples}
    assert read[(f"{TOKEN_GAP.name}_count", None)] == len(gaps)
    assert read[(f"{TOKEN_GAP.name}_sum", None)] == pytest.approx(sum(gaps))
    for bound in TOKEN_GAP.buckets:
        text = str(int(bound)) if bound == int(bound) else repr(bound)
        assert read[(f"{TOKEN_GAP.name}_bucket", text)] == sum(gap <= bound for gap in gaps)


def test_a_long_page_comes_in_pieces_with_each_head_once() -> None:
    instruments = Instruments()
    for number in range(3 * LINES_AT_ONCE):
        instruments.number(GRANTS, f"m{number}").value += 1
    pieces = list(render([Snapshot(Source.SHARD, "0", instruments.families())]))
    assert max(piece.count(b"\n") for piece in pieces) <= LINES_AT_ONCE + len(SHORT)
    assert b"".join(pieces).count(b"# TYPE") == 1
    [grants] = text_string_to_metric_families(b"".join(pieces).decode())
    assert len(grants.samples) == 3 * LINES_AT_ONCE


def test_only_so_many_names_become_labels() -> None:
    names = FirstNames(2)
    assert [names.label(name) for name in ("a", "b", "c", "a", "c")] == ["a", "b", OTHER, "a", OTHER]


def test_of_two_views_of_a_process_the_younger_counts() -> None:
    old, young = Snapshot(Source.REPLICA, "r", {}, 3.0), Snapshot(Source.REPLICA, "r", {}, 0.1)
    namesake = Snapshot(Source.GATEWAY, "r", {}, 9.0)
    assert newest([old, young, namesake]) == [young, namesake] == newest([young, old, namesake])
