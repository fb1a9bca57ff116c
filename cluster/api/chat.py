"""`/v1/chat/completions`: from a conversation to requests for the engine, and from their tokens to the answer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cluster.api.chat_format import ChatCall, ChatChunks, ChatOutput, chat_response
from cluster.api.choice import TextRules
from cluster.api.prepared_call import CallOrigin, UsageTally, spread_choices
from cluster.api.resumption import Past
from cluster.api.running import run_call
from cluster.api.sampling_rules import (
    LogprobsWanted,
    check_logprobs,
    check_min_tokens,
    check_sampling,
    output_length,
    sampling_params,
)
from cluster.api.schema_chat import ChatRequest, ChatResponse
from cluster.api.serving import Serving
from cluster.api.stream_events import Event, stream_events
from cluster.calls.record import Caller
from cluster.errors import InvalidRequest
from cluster.text.conversation import Conversation
from engine.request import GenerateRequest

_NOT_IN_THIS_RELEASE = ("tools", "functions", "audio", "chat_template")
_OF_TOOLS = ("tool_choice", "function_call")


class Chat:
    """The endpoint."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def prepare(self, body: ChatRequest, caller: Caller) -> ChatCall:
        """Validate, render and tokenize; whatever is wrong with the request is raised here."""
        serving = self._serving
        model = serving.model(body.model, caller.principal)
        info = serving.engine_info(model)
        _refuse_unsupported(body)
        check_sampling(body, info, serving.config)
        num_top = _top_logprobs(body)
        check_logprobs(num_top, "top_logprobs", serving.config)
        conversation = Conversation.of(body)
        prompt = await conversation.tokenize(model)
        asked, param = body.max_tokens, "max_tokens"
        if body.max_completion_tokens is not None:
            asked, param = body.max_completion_tokens, "max_completion_tokens"
        room = serving.calls.default_output(caller.principal.tenant, model.name, len(prompt))
        default = None if room is None else max(1, room // (body.n or 1))
        max_tokens = output_length(asked, param, default, len(prompt), info, prompt_param="messages")
        check_min_tokens(body, max_tokens)
        seed = serving.draw_seed() if body.seed is None else body.seed
        request = GenerateRequest(
            request_id=f"chatcmpl-{serving.draw_id()}",
            prompt_token_ids=prompt,
            sampling=sampling_params(body, model.defaults, info, max_tokens, seed, LogprobsWanted(output=num_top)),
            cache_salt=caller.principal.tenant,
        )
        return self.restore(body, serving.origin(request.request_id, info, [request]), caller)

    def restore(self, body: ChatRequest, origin: CallOrigin, caller: Caller) -> ChatCall:
        """The call that was once prepared with this body and this origin."""
        model = self._serving.model(body.model, caller.principal)
        return ChatCall(
            origin=origin,
            model=model,
            context=self._serving.context(model, origin, caller, body.prompt_cache_key or body.user),
            choices=spread_choices(origin.requests, body.n or 1, model, TextRules.of(body)),
            body=body,
        )

    async def answer(self, call: ChatCall) -> ChatResponse:
        """Run to the end."""
        tally, outputs = UsageTally(call), [ChatOutput(call, choice.index) for choice in call.choices]
        async with aclosing(run_call(self._serving, call)) as deltas:
            async for delta in deltas:
                tally.add(delta)
                outputs[delta.choice].add(delta)
        return chat_response(call, [output.choice() for output in outputs], tally.usage())

    def events(self, call: ChatCall, with_ids: bool = False, past: Past | None = None) -> AsyncGenerator[Event, None]:
        """Run as a stream; with a past: go on with it."""
        return stream_events(self._serving, call, ChatChunks(call), with_ids, past)


def _top_logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _refuse_unsupported(body: ChatRequest) -> None:
    for name in _NOT_IN_THIS_RELEASE:
        if getattr(body, name):
            raise InvalidRequest(f"`{name}` is not supported; leave it out.", name, "unsupported_parameter")
    for name in _OF_TOOLS:
        if getattr(body, name) not in (None, "none", "auto"):
            raise InvalidRequest(f"`{name}` is not supported; leave it out.", name, "unsupported_parameter")
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise InvalidRequest(
            '`response_format` can only be {"type": "text"} in this release.',
            "response_format",
            "unsupported_value",
        )
    if body.modalities is not None and body.modalities != ["text"]:
        raise InvalidRequest('`modalities` can only be ["text"].', "modalities", "unsupported_value")
