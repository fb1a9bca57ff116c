"""Where the ranks of a replica run: those of the first stage beside their driver, those of another on its own host.

There a Ray actor starts them by the same `HostSpawner` that the driver uses. It is not asked while steps are computed.
"""

import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import msgspec
import ray

from cluster.config import MantaConfig, ModelConfig
from cluster.replica.host_share import host_share, num_places
from engine.checkpoint import find_checkpoint
from engine.errors import BadCheckpoint
from engine.rank_frames import RankStart
from engine.rank_spawn import LOOPBACK, HostProcess, HostSpawner, RankProcess, StagePlace
from parallel.cores import read_host_cores, share_cores, take_part
from parallel.worker_group import Worker, WorkerGroup, WorkerLost

logger = logging.getLogger("manta.stage_host")
_POLL_S = 0.05
_CLOSE_S, _FORCE_S = 10.0, 2.0  #: so long an actor has to end its ranks before it is killed, and they with it


def take_place(config: MantaConfig, model: ModelConfig, address: str = LOOPBACK) -> StagePlace:
    """What a stage of this model has on this host, until this process ends; `address` is the host's."""
    context = ray.get_runtime_context()
    folder = Path(context.get_temp_dir(), context.get_session_name(), "manta_places", quote(model.served_name, safe=""))
    num_hosts = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    place = take_part(folder, num_places(model, num_hosts))
    share = host_share(config, model, place, num_hosts)
    dealt = share_cores(read_host_cores(), share.num_parts)
    return StagePlace(address, cores=tuple(dealt[part] for part in share.parts), num_sharing=share.num_parts)


class StageHost:
    """The actor: has one bundle, and starts there the ranks of one stage."""

    def __init__(self, config: str, model: str, address: str) -> None:
        decoded = msgspec.json.decode(config, type=MantaConfig)
        self._place = take_place(decoded, decoded.model(model), address)
        self._spawner = HostSpawner([self._place])
        self._processes: dict[int, HostProcess] = {}

    def place(self) -> StagePlace:
        """What the stage has here."""
        return self._place

    def find_model(self, model: str) -> str:
        """The folder here; raises `BadCheckpoint`."""
        try:
            return str(find_checkpoint(model))
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{error.where} on {self._place.address}", error.why) from None

    def start(self, start: RankStart) -> int:
        """A rank process; its id."""
        process = self._spawner.start(0, start)
        self._processes[process.pid] = process
        return process.pid

    def keep_spares(self, count: int) -> None:
        """See `RankSpawner`."""
        try:
            self._spawner.keep_spares(count)
        except OSError as error:
            logger.error("no spare process could be started: %s", error)

    async def wait(self, pid: int) -> int:
        """Its exit code, when it has ended."""
        while (code := self._processes[pid].exit_code()) is None:  # noqa: ASYNC110 - nothing tells of the end
            await asyncio.sleep(_POLL_S)
        return code

    def kill(self, pid: int) -> None:
        """End it at once."""
        self._processes[pid].kill()

    def close(self, force: bool) -> None:
        """End all ranks here."""
        self._spawner.close(force=force)


class RemoteProcess:
    """A rank process on another host; with its host it counts as killed."""

    def __init__(self, worker: Worker, pid: int) -> None:
        self.pid = pid
        self._worker = worker
        self._end = worker.call("wait", pid)

    def exit_code(self) -> int | None:
        """See `RankProcess`."""
        if not self._end.is_there():
            return None
        try:
            return int(self._end.get())
        except WorkerLost:
            return -signal.SIGKILL

    def kill(self) -> None:
        """See `RankProcess`."""
        self._worker.call("kill", self.pid)


class ReplicaSpawner:
    """A `RankSpawner` over the bundles of this replica.

    The driver itself starts the first stage, and on CPUs all others that are on its host; another one is started by an
    actor in its bundle.
    """

    def __init__(self, config: MantaConfig, model: ModelConfig) -> None:
        address = ray.util.get_node_ip_address()
        here = ray.get_runtime_context().get_node_id()
        self._workers: dict[int, Worker] = {}
        if model.pipeline_parallel > 1:
            group = WorkerGroup()
            encoded = msgspec.json.encode(config).decode()
            for stage, node_id in list(enumerate(group.node_ids))[1:]:
                if node_id != here or group.has_gpus:
                    arguments = (encoded, model.served_name, group.addresses[stage])
                    self._workers[stage] = group.start(stage, StageHost, *arguments)
        at = address if self._workers else LOOPBACK
        self.places: Sequence[StagePlace] = [
            self._workers[stage].call("place").get(None) if stage in self._workers else take_place(config, model, at)
            for stage in range(model.pipeline_parallel)
        ]
        self._here = HostSpawner([])
        self.hosts = [place.address if self._workers else address for place in self.places]  #: of the stages

    def find_model(self, model: str) -> Path:
        """See `RankSpawner`."""
        asked = {stage: worker.call("find_model", model) for stage, worker in self._workers.items()}
        here = find_checkpoint(model)
        folders = {stage: answer.get(None) for stage, answer in asked.items()}
        self.places = [
            msgspec.structs.replace(place, folder=folders.get(stage, str(here)))
            for stage, place in enumerate(self.places)
        ]
        return here

    def start(self, stage: int, start: RankStart) -> RankProcess:
        """See `RankSpawner`."""
        worker = self._workers.get(stage)
        if worker is None:
            return self._here.start(stage, start)
        return RemoteProcess(worker, worker.call("start", start).get())

    def keep_spares(self, count: int) -> None:
        """See `RankSpawner`; without waiting."""
        self._here.keep_spares(count)
        for worker in self._workers.values():
            worker.call("keep_spares", count)

    def close(self, *, force: bool = False) -> None:
        """See `RankSpawner`."""
        asked = [worker.call("close", force) for worker in self._workers.values()]
        self._here.close(force=force)
        for worker, answer in zip(self._workers.values(), asked, strict=True):
            with suppress(WorkerLost):
                answer.get(_FORCE_S if force else _CLOSE_S)
            worker.kill()
