"""Where a call's time went: phases that add up to it, whenever it is asked and however the call ended."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.auth.principal import Principal
from cluster.calls.call_log import CallLog
from cluster.calls.record import Attempt, Caller, CallRecord
from cluster.calls.report import report_of
from cluster.frames import FindReport, KeepReports, ReportFound
from cluster.router.report_store import ReportStore

CALLER = Caller(
    principal=Principal(tenant="acme", key_id="k1"),
    way="/v1/completions",
    request_id="req_1",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    arrived_at=10.0,
)


def migrated() -> CallRecord:
    """Arrived at 10, prepared 10.5, granted 11, first token 12, lost 13, granted 13.5, last token 15, end 15.25."""
    record = CallRecord("cmpl-1", "m", CALLER, 10.5)
    record.num_choices, record.num_prompt_tokens = 1, 7
    first = Attempt("r1", 10.5, 0.25, 11.0, None)
    record.began_attempt(first)
    record.got_tokens(first, 1, 4, 12.0)
    first.ended_at, first.why = 13.0, "the replica was lost"
    second = Attempt("r2", 13.0, 0.5, 13.5, 12.0)
    record.began_attempt(second)
    record.got_tokens(second, 2, 6, 15.0)
    second.ended_at = 15.25
    record.end("ok", 200, 15.25)
    return record


def test_a_migrated_call() -> None:
    report = report_of(migrated(), 20.0, 1020.0)
    assert (report.arrived, report.total_s, report.outcome, report.status) == (1010.0, 5.25, "ok", 200)
    phases = report.phases_s
    assert (phases.prepare, phases.queue, phases.prefill, phases.decode, phases.finish) == (0.5, 0.5, 1.0, 3.0, 0.25)
    assert (report.slowest_phase, report.pauses_s, report.migrations) == ("decode", 0.5, 1)
    assert (report.prompt_tokens, report.cached_tokens, report.output_tokens) == (7, 4, 3)
    first, second = report.attempts
    assert (first.replica, first.granted_s, first.first_token_s, first.ended_s) == ("r1", 1.0, 2.0, 3.0)
    assert (first.why_lost, second.why_lost) == ("the replica was lost", "")


@given(st.lists(st.floats(0.0, 9.0), min_size=5, max_size=5), st.integers(0, 5))
def test_the_phases_always_add_up(steps: list[float], reached: int) -> None:
    now, record = 10.0, CallRecord("c", "m", Caller(arrived_at=10.0), 10.0 + steps[0])
    record.num_choices = 1
    for count, step in enumerate(steps[:reached]):
        now += step
        if count == 1:
            record.began_attempt(Attempt("r1", now, 0.0, now, None))
        if count in (2, 3):
            record.got_tokens(record.attempts[0], 1, 0, now)
    if reached == 5:
        record.end("ok", 200, now)
    now = max(now, record.prepared_at)
    report = report_of(record, now, now)
    phases = [getattr(report.phases_s, name) for name in report.phases_s.__struct_fields__]
    assert abs(sum(phases) - report.total_s) < 1e-5
    assert min(phases) >= 0.0
    assert getattr(report.phases_s, report.slowest_phase) == max(phases)
    assert (report.outcome == "running") == (reached < 5)


class Lines:
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.seen.append({"event": event, **fields})


def test_the_log_has_one_flat_line_per_call() -> None:
    lines = Lines()
    CallLog(lines).ended(migrated())
    [line] = lines.seen
    assert all(isinstance(value, str | int | float) for value in json.loads(json.dumps(line)).values())
    assert (line["event"], line["tenant"], line["key_id"], line["id"]) == ("call", "acme", "k1", "cmpl-1")
    assert (line["decode_ms"], line["migrations"]) == (3000.0, 1)
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


def test_reports_are_found_by_either_name_and_only_by_their_tenant() -> None:
    store = ReportStore()
    store.on_keep(
        KeepReports([("acme", "c1", "q1", b"one"), ("acme", "c2", "q1", b"two"), ("other", "c3", "q3", b"x")])
    )
    assert store.on_find(FindReport(1, "c1", "acme")) == ReportFound(1, b"one")
    assert store.on_find(FindReport(2, "q1", "acme")) == ReportFound(2, b"two")
    for name in ("c3", "q3", "c4"):
        assert store.on_find(FindReport(3, name, "acme")) == ReportFound(3)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("cde"), st.sampled_from("qrs")), max_size=40))
def test_the_store_keeps_within_its_bound_and_forgets_the_oldest(kept: list[tuple[str, str, str]]) -> None:
    store = ReportStore(max_bytes=3 * 401)
    for tenant, call_id, request_id in kept:
        store.on_keep(KeepReports([(tenant, call_id, request_id, b"x")]))
        assert store.on_find(FindReport(0, call_id, tenant)).report == b"x"
    assert len(store) <= 3
    newest = list(dict.fromkeys((tenant, call_id) for tenant, call_id, _ in reversed(kept)))[:3]
    assert all(store.on_find(FindReport(0, call_id, tenant)).report for tenant, call_id in newest)
