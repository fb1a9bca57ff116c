"""The one typed configuration of a Manta app: gateway, router and the models it serves.

Read by `cluster.config_reader`; every field's description is the configuration reference.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

import engine
from cluster.auth.config import AuthConfig, is_loopback
from cluster.quotas.config import QuotaConfig
from engine.config import ChainConfig, EngineConfig
from engine.errors import ConfigError

DEMO_MODEL = "demo"  #: the name under which the built-in model is asked for
CHAIN_MODEL = "chain"  #: the one under which the engine without a model is


class Edge(StrEnum):
    """Who accepts HTTP connections."""

    AUTO = "auto"
    DIRECT = "direct"
    PROXY = "proxy"


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side."""

    host: Annotated[str, Meta(description="Address the gateway listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port of the gateway. 0: any free one.")] = 8000
    health_port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(
            description="Port of `/health/live`, `/health/ready` and `/health/progress` in a thread of their own, on "
            "the gateway's host. Unset: 10000 above `port`, or below where there is none. 0: any free one.",
        ),
    ] = None
    grpc_port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(
            description="Port of the gRPC services, on the gateway's host. Unset: none. 0: any free one. Needs the "
            "extra `manta-serve[grpc]`."
        ),
    ] = None
    edge: Annotated[
        Edge,
        Meta(
            description="`direct`: gateways listen on host and port themselves (cheapest). `proxy`: requests come "
            "through Ray Serve's HTTP proxy. `auto`: `proxy` where Ray Serve runs one (`serve run`, "
            "`serve deploy`), else `direct` (`manta serve`)."
        ),
    ] = Edge.AUTO
    replicas: Annotated[int, Meta(ge=1, le=64, description="Gateway processes.")] = 1
    request_timeout_s: Annotated[
        float, Meta(gt=0.0, description="Longest life of a request, waiting included; then 504, or `abort`.")
    ] = 600.0
    max_body_bytes: Annotated[int, Meta(ge=1024, description="Larger request bodies are refused with 413.")] = (
        4 * 1024 * 1024
    )
    max_choices: Annotated[int, Meta(ge=1, description="Largest `n`, and most prompts in one batch request.")] = 128
    max_logprobs: Annotated[int, Meta(ge=0, description="Most alternatives per token.")] = 20
    drain_s: Annotated[
        float, Meta(ge=0.0, description="A gateway that is replaced lets its streams run so long before it ends.")
    ] = 30.0
    resume_s: Annotated[
        float,
        Meta(
            ge=0.0, description="A broken event stream can be resumed for so long at `GET /v1/streams/{id}`. 0: never."
        ),
    ] = 60.0
    stream_stall_s: Annotated[
        float, Meta(gt=0.0, description="A client that reads nothing for so long is cut off.")
    ] = 30.0
    log_calls: Annotated[
        bool,
        Meta(
            description="One line of JSON per call on the gateway's standard error, which Ray keeps with its session's "
            "logs: who, how many tokens, how long each phase took, how it ended. Never a prompt or an answer."
        ),
    ] = True
    tenant_header: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9-]*$",
            description="For development: the request header that names the tenant, believed as it is. Only on "
            "loopback, with edge `direct`.",
        ),
    ] = ""

    @property
    def health_listener_port(self) -> int:
        """What `health_port` stands for; 0: any free one."""
        if self.health_port is not None:
            return self.health_port
        return self.port and self.port + (10_000 if self.port < 55_536 else -10_000)

    def __post_init__(self) -> None:
        if self.tenant_header and (not is_loopback(self.host) or self.edge is not Edge.DIRECT):
            remedy = "anybody could name any tenant; leave it out, or listen on 127.0.0.1 with gateway.edge direct"
            raise ConfigError("gateway.tenant_header", self.tenant_header, remedy)


class Policy(StrEnum):
    """How a request chooses among the replicas that have credit for it."""

    PREFIX_AFFINITY = "prefix_affinity"
    LEAST_LOADED = "least_loaded"
    POWER_OF_TWO = "power_of_two"
    ROUND_ROBIN = "round_robin"
    SESSION_AFFINITY = "session_affinity"


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tenant's standing."""

    weight: Annotated[
        float, Meta(gt=0.0, description="Share of the replicas' work while several tenants wait, against the others'.")
    ] = 1.0


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The queue in front of the replicas."""

    shards: Annotated[
        int, Meta(ge=1, le=64, description="Queue shards, each an actor. With two or more the loss of one is not felt.")
    ] = 2
    policy: Annotated[
        Policy,
        Meta(
            description="Choice of the replica. `prefix_affinity`: least uncached and queued work in tokens, a cached "
            "prefix counts up to a cap. `least_loaded`: least queued work. `power_of_two`: the less loaded of two "
            "random ones. `round_robin`: in turn. `session_affinity`: the same session or prefix, the same replica."
        ),
    ] = Policy.PREFIX_AFFINITY
    affinity_cap_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="With `prefix_affinity`: so much more work a replica may have and still be chosen for its "
            "cached prefix.",
        ),
    ] = 2048
    tenants: Annotated[dict[str, TenantConfig], Meta(description="Tenants with a standing of their own, by name.")] = {}
    max_queued_requests: Annotated[
        int,
        Meta(ge=1, description="Requests that may wait in one shard; one more is refused at once, with Retry-After."),
    ] = 4096
    max_queued_tokens: Annotated[
        int, Meta(ge=1, description="Prompt tokens that may wait in one shard; more are refused, with Retry-After.")
    ] = 16_000_000
    max_resume_bytes: Annotated[
        int,
        Meta(ge=0, description="Memory of one shard for copies of streams that may be resumed; over it the oldest go."),
    ] = 256 * 1024 * 1024
    lease_s: Annotated[
        float, Meta(gt=0.0, description="A grant that is not used for so long returns to the replica's credit.")
    ] = 2.0
    report_timeout_s: Annotated[
        float, Meta(gt=0.0, description="A replica that reports nothing for so long gets no new requests.")
    ] = 1.0


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One served model."""

    model: Annotated[
        str,
        Meta(
            min_length=1,
            description="A local Hugging Face directory, a hub id, `demo` (the built-in model), or `chain` (no model: "
            "an engine for measuring and testing what surrounds an engine).",
        ),
    ] = DEMO_MODEL
    name: Annotated[
        str, Meta(description="The `model` that requests name. Unset: the directory's or hub id's last part.")
    ] = ""
    replicas: Annotated[int, Meta(ge=1, le=1024, description="Engines of this model.")] = 1
    drain_s: Annotated[
        float,
        Meta(ge=0.0, description="A replica that is taken away lets its streams run so long; the rest migrate."),
    ] = 5.0
    grace_s: Annotated[
        float,
        Meta(
            ge=0.0, description="So long they may run where no other replica has their weights, as when those change."
        ),
    ] = 600.0
    tensor_parallel: Annotated[
        int, Meta(ge=1, le=64, description="Processes (ranks) that each hold a part of every layer; on one host.")
    ] = 1
    pipeline_parallel: Annotated[
        int, Meta(ge=1, le=64, description="Stages that each hold some of the layers; each may be on another host.")
    ] = 1
    rank_timeout_s: Annotated[
        float,
        Meta(gt=0.0, description="A replica of many ranks is lost when none of them moves, or one is silent, so long."),
    ] = 10.0
    spare_ranks: Annotated[
        int,
        Meta(
            ge=0,
            le=16,
            description="Of a replica of many ranks: processes that wait on each of its hosts to take the place of a "
            "rank that is lost, 250 MiB each. With 0 a rank is replaced all the same, some seconds later.",
        ),
    ] = 1
    engine: EngineConfig = EngineConfig()
    chain: ChainConfig = ChainConfig()

    def __post_init__(self) -> None:
        if self.is_chain and self.num_ranks > 1:
            raise ConfigError("tensor_parallel", self.tensor_parallel, "the model `chain` has nothing to split: give 1")
        if self.chain != ChainConfig() and not self.is_chain:
            raise ConfigError("chain", msgspec.to_builtins(self.chain), f"is for the model `chain`, not {self.model!r}")
        tokens, sequences = self.engine.max_batched_tokens, self.engine.max_num_seqs
        if tokens < sequences:
            remedy = f"give at least max_num_seqs = {sequences}: each running sequence takes a token of a step"
            raise ConfigError("engine.max_batched_tokens", tokens, remedy)

    @property
    def num_ranks(self) -> int:
        """Processes that compute one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def is_chain(self) -> bool:
        """Whether this is the engine without a model."""
        return self.model == CHAIN_MODEL

    @property
    def location(self) -> str:
        """The directory or hub id; `demo` (whose tokenizer `chain` shares) is the package's own on whatever host."""
        built_in = self.model in (DEMO_MODEL, CHAIN_MODEL)
        return str(Path(engine.__file__).parent / "demo_model") if built_in else self.model

    @property
    def served_name(self) -> str:
        """The name requests go by."""
        return self.name or self.model.rstrip("/").rsplit("/", 1)[-1]


class LedgerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row for each call: who, when, which model, how many tokens. `manta usage` sums and exports it."""

    dir: Annotated[
        str,
        Meta(
            pattern=r"^$|^/",
            description="Absolute path of a folder, on each host that has a gateway, in which rows are appended to "
            "files of one gateway and one day. Unset: nothing is written.",
        ),
    ] = ""


class TracesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenTelemetry traces of calls."""

    endpoint: Annotated[
        str,
        Meta(
            description="Where to send them by OTLP over gRPC, as `http://collector:4317` (`https://`: by TLS). Empty: "
            "nowhere. Needs the extra `manta-serve[traces]`."
        ),
    ] = ""
    sample: Annotated[
        float,
        Meta(ge=0.0, le=1.0, description="Share of the calls that are traced, of those whose caller does not say."),
    ] = 0.01


class MantaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a Manta app is told."""

    models: tuple[ModelConfig, ...] = (ModelConfig(replicas=2),)
    gateway: GatewayConfig = GatewayConfig()
    auth: AuthConfig = AuthConfig()
    router: RouterConfig = RouterConfig()
    traces: TracesConfig = TracesConfig()
    quotas: QuotaConfig = QuotaConfig()
    ledger: LedgerConfig = LedgerConfig()

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("models", (), "name at least one model")
        names = [model.served_name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("models[].name", name, "two models have this name; give each its own")
        self.quotas.check_models(names)
        if self.auth.is_on and self.gateway.tenant_header:
            remedy = "with `auth` on, keys and tokens name the tenant; leave it out"
            raise ConfigError("gateway.tenant_header", self.gateway.tenant_header, remedy)
        require_auth(self.auth, "gateway.host", self.gateway.host)

    def model(self, name: str) -> ModelConfig:
        """The model served under `name`; KeyError if none is."""
        for model in self.models:
            if model.served_name == name:
                return model
        raise KeyError(name)


def require_auth(auth: AuthConfig, field: str, host: str) -> None:
    """Refuse to listen where strangers are, unless they are asked who they are; `field` says who wants to."""
    if not auth.is_on and not is_loopback(host):
        remedy = "anybody who reaches it could use it: make an API key (`manta key create`) and set auth.api_keys"
        raise ConfigError(field, host, f"{remedy}, or listen on 127.0.0.1")
