"""One campaign: clients come by a Poisson process, the nemesis strikes, the oracle judges each request as it ends."""

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import psutil

from scripts.chaos_run.cluster_hand import ClusterHand, NoHand, send
from scripts.chaos_run.gaps import Gap, find_gaps
from scripts.chaos_run.journal import Journal
from scripts.chaos_run.lag import Lateness, Sleeper, watch_own_loop
from scripts.chaos_run.nemesis import FREEZES, ClusterView, Fault, Kind, Nemesis, Process, Whole
from scripts.chaos_run.oracle import Violation, judge
from scripts.chaos_run.stream_client import StreamClient
from scripts.chaos_run.workload import Ask, Expected

LOOK_S = 0.25  #: between two looks at the cluster
RECOVERY_S = 90.0  #: a cluster that is not whole again by then will not be


class Workload(Protocol):
    def ask(self, number: int) -> tuple[Ask, list[Expected]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked of a campaign. `streams` is the least number: clients come until the last fault is over."""

    seed: int
    streams: int
    faults: int
    rate: float  #: new requests per second
    keep_going: bool = False
    config_file: Path | None = None  #: of the app, for redeploying it


@dataclass(slots=True)
class Outcome:
    """What a campaign came to."""

    journals: list[Journal] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)  #: what went wrong beside the streams
    gaps: list[Gap] = field(default_factory=list)
    own: Lateness = field(default_factory=Lateness)
    machine: Lateness = field(default_factory=Lateness)
    num_near_ties: int = 0
    num_positions: int = 0
    migrations: int | None = None
    seconds: float = 0.0


class Campaign:
    """Runs once. `tell` hears how it goes; `history` gets one JSON line for each request and fault."""

    def __init__(
        self,
        settings: Settings,
        client: StreamClient,
        workload: Workload,
        hand: ClusterHand | None,
        nemesis: Nemesis,
        tell: Callable[[Outcome, str], None],
        history: TextIO | None = None,
    ) -> None:
        self._settings, self._client, self._workload = settings, client, workload
        self._hand, self._nemesis, self._tell, self._history = hand, nemesis, tell, history
        self._outcome = Outcome()
        self._doing = ""
        self._gone: set[int] = set()
        self._stop = asyncio.Event()

    async def run(self) -> Outcome:
        """To the end of the last request, or, unless told to keep going, to the first violation."""
        outcome, began = self._outcome, time.monotonic()
        sleeper = Sleeper(self._niceness())
        watcher = asyncio.create_task(watch_own_loop(outcome.own))
        try:
            async with asyncio.TaskGroup() as tasks:
                striking = tasks.create_task(self._strike())
                tasks.create_task(self._come(tasks, striking))
        finally:
            watcher.cancel()
            outcome.machine = sleeper.stop()
            self._free_frozen()
        if self._hand is not None:
            with suppress(NoHand):
                outcome.migrations = await asyncio.to_thread(self._hand.migrations)
        outcome.gaps = find_gaps(outcome.journals, outcome.faults, outcome.own)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _niceness(self) -> int:
        """Of the engines' processes."""
        replicas = self._hand.view().replicas if self._hand is not None else ()
        return max((psutil.Process(replica.pid).nice() for replica in replicas), default=0)

    # Clients

    async def _come(self, tasks: asyncio.TaskGroup, striking: asyncio.Task[None]) -> None:
        """Open loop: whether the earlier ones are done or not."""
        draw = random.Random(f"{self._settings.seed}/arrivals")
        number = 0
        while not self._stop.is_set() and (number < self._settings.streams or not striking.done()):
            tasks.create_task(self._request(number))
            number += 1
            await asyncio.sleep(draw.expovariate(self._settings.rate))

    async def _request(self, number: int) -> None:
        ask, expected = self._workload.ask(number)
        journal = await self._client.run(ask)
        verdict = judge(journal, expected)
        outcome = self._outcome
        outcome.journals.append(journal)
        outcome.violations += verdict.violations
        outcome.num_near_ties += verdict.num_near_ties
        outcome.num_positions += verdict.num_positions
        wrong = [str(violation) for violation in verdict.violations]
        self._write({**journal.record(), "violations": wrong} if self._history is not None else {})
        if wrong and not self._settings.keep_going:
            self._stop.set()
        self._tell(outcome, self._doing)

    # The nemesis

    async def _strike(self) -> None:
        if self._hand is None:
            return
        try:
            while len(self._outcome.faults) < self._settings.faults and not self._stop.is_set():
                kind = self._nemesis.next_kind()
                fault = self._nemesis.aim(kind, await self._whole(self._hand, kind))
                if fault is not None:
                    await self._do(self._hand, fault)
        except NoHand as error:
            self._outcome.troubles.append(str(error))
            self._stop.set()

    async def _whole(self, hand: ClusterHand, kind: Kind) -> ClusterView:
        """The cluster, once it has been whole for a moment."""
        self._say(f"waiting until whole ({kind} is next)")
        until = time.monotonic() + RECOVERY_S
        rested = False
        while True:
            view = self._without_the_gone(await asyncio.to_thread(hand.view))
            if self._stop.is_set():
                return ClusterView()
            if not Whole().is_met(view, kind):
                rested = False
                if time.monotonic() > until:
                    raise NoHand(f"the cluster is not whole again after {RECOVERY_S:.0f} s: {view.counts()}")
                await asyncio.sleep(LOOK_S)
            elif rested:
                return view
            else:
                rested = True
                await asyncio.sleep(self._nemesis.pause_s())

    def _without_the_gone(self, view: ClusterView) -> ClusterView:
        """A process that was just killed may be listed for a moment longer."""

        def left(processes: Any) -> list[Process]:
            return [process for process in processes if process.pid not in self._gone]

        return ClusterView(
            left(view.replicas), left(view.gateways), left(view.shards), left(view.controllers), left(view.proxies),
            left(view.ranks), view.is_deploying,
        )  # fmt: skip

    async def _do(self, hand: ClusterHand, fault: Fault) -> None:
        self._say(str(fault))
        fault.at = time.monotonic()
        self._outcome.faults.append(fault)
        match fault.kind:
            case Kind.FREEZE_REPLICA | Kind.FREEZE_RANK:
                await self._freeze(fault)
            case Kind.DRAIN_REPLICA:
                assert fault.target is not None
                self._gone.add(fault.target.pid)
                await asyncio.to_thread(hand.drain, fault.target.name)
            case Kind.REDEPLOY:
                await self._redeploy(hand)
                fault.hold_s = time.monotonic() - fault.at
            case _:
                self._signal(fault.target, signal.SIGKILL)
        self._write({"fault": fault.kind, "target": str(fault.target), "start": fault.at, "end": fault.over_at})
        self._tell(self._outcome, self._doing)

    async def _freeze(self, fault: Fault) -> None:
        self._signal(fault.target, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.hold_s)
        finally:
            self._signal(fault.target, signal.SIGKILL if fault.ends_in_kill else signal.SIGCONT)

    async def _redeploy(self, hand: ClusterHand) -> None:
        """Until the controller calls it done."""
        await asyncio.to_thread(hand.redeploy, str(self._settings.config_file))
        until = time.monotonic() + RECOVERY_S
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(LOOK_S)
            quiet = 0 if (await asyncio.to_thread(hand.view)).is_deploying else quiet + 1
            if time.monotonic() > until:
                raise NoHand(f"the app is still being deployed after {RECOVERY_S:.0f} s")

    def _signal(self, target: Process | None, number: signal.Signals) -> None:
        assert target is not None
        if number is signal.SIGKILL:
            self._gone.add(target.pid)
        send(target.pid, number)

    def _free_frozen(self) -> None:
        """Also when the campaign was interrupted."""
        for fault in self._outcome.faults:
            if fault.kind in FREEZES and fault.target is not None and fault.target.pid not in self._gone:
                send(fault.target.pid, signal.SIGCONT)

    def _say(self, doing: str) -> None:
        self._doing = doing
        self._tell(self._outcome, doing)

    def _write(self, record: dict[str, Any]) -> None:
        if self._history is not None and record:
            self._history.write(json.dumps(record) + "\n")
