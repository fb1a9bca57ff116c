"""CallReports: what this gateway tells the router shards of its ended calls, and asks them of any gateway's."""

import time

import msgspec

from cluster.calls.record import CallRecord
from cluster.calls.report import CallReport, report_of
from cluster.frames import FindReport, FromRouter, KeepReports, ReportFound
from cluster.streams.inquiry import Inquiry
from cluster.streams.link import Link
from cluster.streams.shard_choice import choose_shard

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CallReport).decode


class CallReports:
    """A `CallSink`. Reports lie in one shard each and are lost with it: they are for looking, not for accounting."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._waiting: list[tuple[str, str, str, bytes]] = []
        self._inquiries: dict[int, Inquiry[bytes]] = {}
        self._num_inquiries = 0

    def began(self, record: CallRecord) -> None:
        """Nothing is told of a call before it has ended."""

    def ended(self, record: CallRecord) -> None:
        """Goes to a shard at the next tick."""
        assert record.ended_at is not None
        report = report_of(record, record.ended_at, time.time())
        self._waiting.append((report.tenant, report.id, report.request_id, _encode(report)))

    async def find(self, name: str, tenant: str) -> CallReport | None:
        """The tenant's ended call with that id, or whose answer had that `X-Request-Id`."""
        self._send()
        self._num_inquiries += 1
        ticket = self._num_inquiries
        inquiry = self._inquiries[ticket] = Inquiry(set(self._links))
        try:
            for link in self._links.values():
                link.send(FindReport(ticket, name, tenant))
            await inquiry.wait()
        finally:
            del self._inquiries[ticket]
        reports = [_decode(found) for found in inquiry.found]
        return max(reports, key=lambda report: report.arrived, default=None)

    def on_router(self, shard: int, link: Link) -> None:
        """A shard is there (again)."""
        self._links[shard] = link

    def on_router_lost(self, shard: int) -> None:
        """It answers nothing any more."""
        self._links.pop(shard, None)
        for inquiry in self._inquiries.values():
            inquiry.gone(shard)

    def on_router_frame(self, shard: int, frame: FromRouter) -> None:
        """It may be an answer."""
        if isinstance(frame, ReportFound) and (inquiry := self._inquiries.get(frame.ticket)) is not None:
            inquiry.answered(shard, frame.report or None)

    def on_tick(self, now: float) -> None:
        """What has gathered meanwhile goes in one frame."""
        self._send()

    def _send(self) -> None:
        """All that wait, to one shard; to none if there is none."""
        waiting, self._waiting = self._waiting, []
        if waiting and self._links:
            shard = choose_shard(waiting[0][1].encode(), set(self._links))
            assert shard is not None
            self._links[shard].send(KeepReports(waiting))
