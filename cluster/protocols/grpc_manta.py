"""`manta.v1.Manta`: the completions and the chat of the HTTP API, as typed messages."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from cluster.api.chat import Chat
from cluster.api.choice import Delta
from cluster.api.completions import Completions
from cluster.api.prepared_call import PreparedCall, UsageTally
from cluster.api.request_body import convert_fields
from cluster.api.running import run_call
from cluster.api.sampling_rules import context_limit
from cluster.api.schema_chat import ChatRequest
from cluster.api.schema_completions import CompletionRequest
from cluster.api.serving import Serving
from cluster.protocols.grpc_way import Context, GrpcWay, add_headers, cut_off_unread
from cluster.protocols.proto import manta_pb2

SERVICE = "manta.v1.Manta"
_PLAIN = (
    "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "ignore_eos",
)  # fmt: skip


class MantaService:
    """The methods."""

    def __init__(self, serving: Serving, way: GrpcWay) -> None:
        self._serving, self._way = serving, way
        self._completions, self._chat = Completions(serving), Chat(serving)

    async def generate(self, request: Any, context: Context) -> AsyncGenerator[Any, None]:
        """Continue a text or tokens."""
        async with self._way.enter(context, f"{SERVICE}/Generate") as caller:
            ids = request.WhichOneof("prompt") == "token_ids"
            fields = {**_sampling(request), "prompt": list(request.token_ids.ids) if ids else request.text}
            fields["model"] = request.model or self._serving.model(None, caller.principal).name
            if request.sampling.HasField("logprobs"):
                fields["logprobs"] = request.sampling.logprobs
            call = await self._completions.prepare(convert_fields(fields, CompletionRequest), caller)
            async with aclosing(
                cut_off_unread(self._chunks(call, context), self._serving.config.stream_stall_s)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def chat(self, request: Any, context: Context) -> AsyncGenerator[Any, None]:
        """Answer a conversation."""
        async with self._way.enter(context, f"{SERVICE}/Chat") as caller:
            fields = {**_sampling(request), "messages": [_message(message) for message in request.messages]}
            fields["model"] = request.model or self._serving.model(None, caller.principal).name
            if request.sampling.HasField("logprobs"):
                fields |= {"logprobs": True, "top_logprobs": request.sampling.logprobs}
            call = await self._chat.prepare(convert_fields(fields, ChatRequest), caller)
            async with aclosing(
                cut_off_unread(self._chunks(call, context), self._serving.config.stream_stall_s)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def models(self, request: Any, context: Context) -> Any:
        """Those that the caller may use."""
        async with self._way.enter(context, f"{SERVICE}/Models") as caller:
            found = []
            for model in self._serving.models_of(caller.principal):
                info = self._serving.generator.model_info(model.name)
                found.append(manta_pb2.Model(id=model.name, max_model_len=0 if info is None else context_limit(info)))
            return manta_pb2.ModelsResponse(models=found)

    async def _chunks(self, call: PreparedCall, context: Context) -> AsyncGenerator[Any, None]:
        tally = UsageTally(call)
        async with aclosing(run_call(self._serving, call)) as deltas:
            async for delta in deltas:
                tally.add(delta)
                if delta.token_ids or delta.text or delta.finish_reason is not None:
                    yield _chunk(call.id, delta)
        usage = tally.usage()
        add_headers(context, call.record.headers)
        yield manta_pb2.Chunk(
            id=call.id,
            usage=manta_pb2.Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.prompt_tokens_details.cached_tokens,
            ),
        )


def _sampling(request: Any) -> dict[str, Any]:
    """The fields that were given."""
    sampling = request.sampling
    fields: dict[str, Any] = {name: getattr(sampling, name) for name in _PLAIN if sampling.HasField(name)}
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        fields["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
    return {**fields, "user": request.user} if request.user else fields


def _message(message: Any) -> Mapping[str, str]:
    fields = {"role": message.role, "content": message.content}
    return {**fields, "name": message.name} if message.name else fields


def _chunk(call_id: str, delta: Delta) -> Any:
    return manta_pb2.Chunk(
        id=call_id,
        choice=delta.choice,
        text=delta.text,
        token_ids=delta.token_ids,
        index=delta.next_index - len(delta.token_ids),
        finish_reason=delta.finish_reason or "",
        logprobs=[
            manta_pb2.TokenLogprob(
                logprob=found.logprob,
                rivals=[manta_pb2.Rival(token_id=token_id, logprob=logprob) for token_id, logprob in found.top],
            )
            for found in delta.logprobs or ()
        ],
    )
