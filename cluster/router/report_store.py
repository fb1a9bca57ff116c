"""ReportStore: the reports of ended calls that a router shard keeps for whoever asks; they mean nothing to it."""

from cluster.frames import FindReport, KeepReports, ReportFound

MAX_BYTES = 32 * 1024 * 1024  #: the oldest go first
_REPORT_BYTES = 400  #: what Python needs to hold one


class ReportStore:
    """By call id and by request id, each of one tenant: the last one that had it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._reports: dict[tuple[str, str], bytes] = {}  # (tenant, call id), oldest first
        self._call_ids: dict[tuple[str, str], str] = {}  # (tenant, request id)
        self._request_ids: dict[tuple[str, str], str] = {}  # (tenant, call id)

    def __len__(self) -> int:
        return len(self._reports)

    def on_keep(self, keep: KeepReports) -> None:
        """Take them in."""
        for tenant, call_id, request_id, report in keep.reports:
            key = (tenant, call_id)
            self._drop(key)
            self._reports[key] = report
            self._request_ids[key] = request_id
            self._call_ids[tenant, request_id] = call_id
            self._num_bytes += len(report) + _REPORT_BYTES
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._reports)))

    def on_find(self, find: FindReport) -> ReportFound:
        """What another tenant asked for, and what is not kept, look the same."""
        call_id = self._call_ids.get((find.tenant, find.name), find.name)
        return ReportFound(find.ticket, self._reports.get((find.tenant, call_id), b""))

    def _drop(self, key: tuple[str, str]) -> None:
        report = self._reports.pop(key, None)
        if report is None:
            return
        self._num_bytes -= len(report) + _REPORT_BYTES
        name = (key[0], self._request_ids.pop(key))
        if self._call_ids.get(name) == key[1]:
            del self._call_ids[name]
