"""What the API endpoints share: the served models, the way to their engines, the limits, ids and seeds."""

import secrets
import time
from collections.abc import Mapping
from hashlib import blake2b
from math import inf

from cluster.api.prepared_call import CallOrigin
from cluster.api.request_body import shown
from cluster.auth.principal import Principal
from cluster.calls.calls import Calls
from cluster.calls.record import Caller, CallRecord
from cluster.config import GatewayConfig
from cluster.errors import InvalidRequest, ModelNotFound, NoReadyReplica
from cluster.generation import Generator, RequestContext
from cluster.streams.stream_copies import StreamCopies
from cluster.text.served_model import ServedModel
from engine.config import EngineInfo
from engine.request import GenerateRequest

_RETRY_AFTER_S = 1.0


class Serving:
    """Everything an endpoint works with."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        generator: Generator,
        config: GatewayConfig,
        copies: StreamCopies | None = None,
        calls: Calls | None = None,
    ) -> None:
        self.models, self.generator, self.config = models, generator, config
        self.copies = copies or StreamCopies(config.resume_s)
        self.calls = calls or Calls()

    def draw_seed(self) -> int:
        """For a request without one."""
        return secrets.randbits(63)

    def draw_id(self) -> str:
        """What is unique about a call's id."""
        return secrets.token_hex(12)

    def models_of(self, principal: Principal) -> list[ServedModel]:
        """Those that this one may use."""
        return [model for name, model in self.models.items() if principal.models is None or name in principal.models]

    def model(self, name: str | None, principal: Principal) -> ServedModel:
        """The model of that name; without a name the only one. Who may not use it is not told that it is there."""
        if name is None:
            allowed = self.models_of(principal)
            if len(allowed) == 1:
                return allowed[0]
            raise InvalidRequest(
                f"`model` is missing, and {'several models are' if allowed else 'none is'} served.", "model"
            )
        found = self.models.get(name)
        if found is None or (principal.models is not None and name not in principal.models):
            raise ModelNotFound(f"The model {shown(name)} is not served here; `/v1/models` lists what is.", "model")
        return found

    def engine_info(self, model: ServedModel) -> EngineInfo:
        """The limits of the model's engines; NoReadyReplica while there is none."""
        info = self.generator.model_info(model.name)
        if info is None:
            raise NoReadyReplica("No replica of this model is ready yet; try again.", "model", _RETRY_AFTER_S)
        return info

    def origin(self, call_id: str, info: EngineInfo, requests: list[GenerateRequest]) -> CallOrigin:
        """Of a call that begins now."""
        return CallOrigin(
            id=call_id,
            created=int(time.time()),
            fingerprint=fingerprint(info),
            weights_revision=info.weights_revision,
            block_size=info.block_size,
            requests=requests,
        )

    def context(self, model: ServedModel, origin: CallOrigin, caller: Caller, session: object = None) -> RequestContext:
        """What goes along with every request of this call; a text as `session` names one of the tenant's."""
        tenant = caller.principal.tenant
        return RequestContext(
            model=model.name,
            tenant=tenant,
            session=_session_of(tenant, session) if session and isinstance(session, str) else "",
            timeout_s=min(self.config.request_timeout_s, inf if caller.timeout_s is None else caller.timeout_s),
            record=CallRecord(origin.id, model.name, caller, self.calls.clock()),
        )


def _session_of(tenant: str, name: str) -> str:
    """A short name, whatever the client's; two tenants never share a session."""
    return blake2b(f"{len(tenant)}/{tenant}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fingerprint(info: EngineInfo) -> str:
    """Changes with what could change the tokens: weights and number format."""
    return "fp_" + blake2b(f"{info.weights_revision}/{info.dtype}".encode(), digest_size=5).hexdigest()
