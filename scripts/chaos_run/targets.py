"""What can be put under test: Manta with the chain engine, Manta with a real model, plain Ray Serve as the baseline.

Each says how it is started, what it is asked, and which faults it can be given.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.config import CHAIN_MODEL, MantaConfig, ModelConfig
from cluster.config_reader import read_config
from cluster.text.tokenizer import Tokenizer
from deployments.app import APP_NAME
from scripts.chaos_run.campaign import Workload
from scripts.chaos_run.cluster_hand import ClusterHand
from scripts.chaos_run.nemesis import WEIGHTS, Kind
from scripts.chaos_run.recorded import record
from scripts.chaos_run.served_app import free_port
from scripts.chaos_run.stream_client import StreamClient, as_it_comes
from scripts.chaos_run.workload import ChainModel, ChainWorkload, TokensOnly

LENGTHS = ((4, 40), (60, 160), (60, 160), (200, 400))  #: tokens of output: short, middle, long
DEADLINE_S = 60.0  #: of a request
GRACE_S = 5.0  #: over the server's own limit of a request
RANK_TIMEOUT_S = 3.0
NUM_RECORDED = 42

MakeClient = Callable[..., StreamClient]


class MantaTarget:
    """`manta serve` with several of everything, so that one may die; or one that runs already."""

    app = APP_NAME
    resumes = True

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self.config_file = folder / "manta.yaml"
        self._config: MantaConfig = read_config(self._settings())
        self.config_file.write_text(yaml.safe_dump(self._settings()))
        self.model: ModelConfig = self._config.models[0]
        self.is_chain = self.model.is_chain
        self.has_gap_bounds = self.is_chain

    def command(self) -> list[str]:
        return ["-m", "deployments.cli", "serve", "--config", str(self.config_file)]

    def _settings(self) -> dict[str, Any]:
        args = self._args
        model: dict[str, Any] = {"model": args.model, "replicas": args.replicas, "drain_s": 2.0}
        if args.model == CHAIN_MODEL:
            model["chain"] = {"step_s": args.step}
        else:
            model["engine"] = {"dtype": args.dtype, "threads": 1}
            model["tensor_parallel"] = args.ranks
            model["rank_timeout_s"] = RANK_TIMEOUT_S
        gateway = {"port": free_port(), "replicas": args.gateways, "edge": args.edge, "request_timeout_s": DEADLINE_S}
        return {"models": [model], "gateway": {**gateway, "drain_s": 5.0}, "router": {"shards": 2}}

    async def workload(self, seed: int, make_client: MakeClient) -> Workload:
        """What is asked of it."""
        tokenizer = Tokenizer.load(Path(self.model.location))
        if self.is_chain:
            return ChainWorkload(seed, ChainModel(tokenizer.vocab_size, tokenizer), LENGTHS)
        return await record(seed, NUM_RECORDED, tokenizer.vocab_size, make_client(as_it_comes))

    def kinds(self, hand: ClusterHand) -> Mapping[Kind, float]:
        """The faults to draw from: less those for which there is nobody, or nobody to take over."""
        view = hand.view()
        enough = {
            Kind.KILL_GATEWAY: len(view.gateways) > 1,
            Kind.KILL_SHARD: len(view.shards) > 1,
            Kind.KILL_PROXY: bool(view.proxies),
            Kind.KILL_CONTROLLER: bool(view.controllers),
            Kind.REDEPLOY: self._args.url is None,
            Kind.KILL_RANK: bool(view.ranks),
            Kind.FREEZE_RANK: bool(view.ranks),
        }
        return {kind: weight for kind, weight in WEIGHTS.items() if enough.get(kind, len(view.replicas) > 1)}


class PlainRayServe:
    """The baseline. Its streams cannot be resumed, and have no text."""

    app = "plain"
    resumes = False
    is_chain = True
    has_gap_bounds = True

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self.model = ModelConfig(model=CHAIN_MODEL)
        self.config_file = folder / "none"

    def command(self) -> list[str]:
        args = self._args
        options = ["--port", str(free_port()), "--replicas", str(args.replicas), "--step", str(args.step)]
        return ["-m", "scripts.chaos_run.plain_ray_serve", *options]

    async def workload(self, seed: int, make_client: MakeClient) -> Workload:
        """Plain streams."""
        tokenizer = Tokenizer.load(Path(self.model.location))
        return TokensOnly(ChainWorkload(seed, ChainModel(tokenizer.vocab_size, tokenizer), LENGTHS))

    def kinds(self, hand: ClusterHand) -> Mapping[Kind, float]:
        """Only engines are hit."""
        return {kind: WEIGHTS[kind] for kind in (Kind.KILL_REPLICA, Kind.FREEZE_REPLICA)}


Target = MantaTarget | PlainRayServe
TARGETS: dict[str, type[Target]] = {"manta": MantaTarget, "ray-serve": PlainRayServe}
