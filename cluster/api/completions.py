"""`/v1/completions`: from a body to requests for the engine, and from their tokens to the answer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cluster.api.choice import TextRules
from cluster.api.completion_format import CompletionCall, CompletionChunks, CompletionOutput, Prompt, completion
from cluster.api.prepared_call import CallOrigin, UsageTally, spread_choices
from cluster.api.resumption import Past
from cluster.api.running import run_call
from cluster.api.sampling_rules import (
    LogprobsWanted,
    check_logprobs,
    check_min_tokens,
    check_sampling,
    check_token_ids,
    output_length,
    sampling_params,
)
from cluster.api.schema_completions import CompletionRequest, CompletionResponse
from cluster.api.serving import Serving
from cluster.api.stream_events import Event, stream_events
from cluster.calls.record import Caller
from cluster.errors import InvalidRequest
from cluster.text.served_model import ServedModel
from engine.config import EngineInfo
from engine.request import GenerateRequest

DEFAULT_MAX_TOKENS = 16  #: as the OpenAI API has it


class Completions:
    """The endpoint."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def prepare(self, body: CompletionRequest, caller: Caller) -> CompletionCall:
        """Validate and tokenize; whatever is wrong with the request is raised here."""
        serving = self._serving
        model = serving.model(body.model, caller.principal)
        info = serving.engine_info(model)
        _refuse_unsupported(body)
        check_sampling(body, info, serving.config)
        check_logprobs(body.logprobs, "logprobs", serving.config)
        prompts = await self._prompts(body, model, info)
        call_id = f"cmpl-{serving.draw_id()}"
        seed = serving.draw_seed() if body.seed is None else body.seed
        requests = [_request(call_id, prompt, body, model, info, seed, caller) for prompt in prompts]
        return self._call(body, serving.origin(call_id, info, requests), prompts, caller)

    def restore(self, body: CompletionRequest, origin: CallOrigin, caller: Caller) -> CompletionCall:
        """The call that was once prepared with this body and this origin."""
        texts = [given if isinstance(given, str) else None for given in self._split(body)]
        ids = [request.prompt_token_ids for request in origin.requests]
        return self._call(body, origin, list(map(Prompt, ids, texts)), caller)

    def _call(
        self, body: CompletionRequest, origin: CallOrigin, prompts: list[Prompt], caller: Caller
    ) -> CompletionCall:
        model = self._serving.model(body.model, caller.principal)
        return CompletionCall(
            origin=origin,
            model=model,
            context=self._serving.context(model, origin, caller, body.user),
            choices=spread_choices(origin.requests, body.n or 1, model, TextRules.of(body)),
            body=body,
            prompts=prompts,
        )

    async def answer(self, call: CompletionCall) -> CompletionResponse:
        """Run to the end."""
        tally = UsageTally(call)
        outputs = [CompletionOutput(call, choice.index) for choice in call.choices]
        async with aclosing(run_call(self._serving, call)) as deltas:
            async for delta in deltas:
                tally.add(delta)
                outputs[delta.choice].add(delta)
        return completion(call, [output.choice() for output in outputs], tally.usage())

    def events(
        self, call: CompletionCall, with_ids: bool = False, past: Past | None = None
    ) -> AsyncGenerator[Event, None]:
        """Run as a stream; with a past: go on with it."""
        return stream_events(self._serving, call, CompletionChunks(call), with_ids, past)

    async def _prompts(self, body: CompletionRequest, model: ServedModel, info: EngineInfo) -> list[Prompt]:
        prompts = []
        for text_or_ids in self._split(body):
            if isinstance(text_or_ids, str):
                ids = await model.tokenizer.encode(text_or_ids, add_special_tokens=body.add_special_tokens is not False)
                prompts.append(Prompt(ids, text_or_ids))
            else:
                check_token_ids(text_or_ids, "prompt", info.vocab_size)
                prompts.append(Prompt(text_or_ids))
            if not prompts[-1].token_ids:
                raise InvalidRequest("`prompt` holds no token; give at least one.", "prompt")
        return prompts

    def _split(self, body: CompletionRequest) -> list[str | list[int]]:
        """The prompts of a batch, each a text or ids."""
        given = body.prompt
        if isinstance(given, str):
            return [given]
        if not given:
            raise InvalidRequest("`prompt` is an empty list; give a text or token ids.", "prompt")
        ids = [item for item in given if isinstance(item, int)]
        if len(ids) == len(given):
            return [ids]
        if len({type(item) for item in given}) > 1:
            raise InvalidRequest("`prompt` mixes texts and token ids; give a list of one kind.", "prompt")
        most = self._serving.config.max_choices
        if len(given) * (body.n or 1) > most:
            raise InvalidRequest(
                f"`prompt` holds {len(given)} prompts with {body.n or 1} answers each; at most {most} answers are "
                "allowed in one request.",
                "prompt",
            )
        return [item for item in given if not isinstance(item, int)]


def _request(
    call_id: str,
    prompt: Prompt,
    body: CompletionRequest,
    model: ServedModel,
    info: EngineInfo,
    seed: int,
    caller: Caller,
) -> GenerateRequest:
    max_tokens = output_length(body.max_tokens, "max_tokens", DEFAULT_MAX_TOKENS, len(prompt.token_ids), info)
    check_min_tokens(body, max_tokens)
    wanted = LogprobsWanted(output=body.logprobs, prompt=body.logprobs if body.echo else None)
    return GenerateRequest(
        request_id=call_id,
        prompt_token_ids=prompt.token_ids,
        sampling=sampling_params(body, model.defaults, info, max_tokens, seed, wanted),
        cache_salt=caller.principal.tenant,
    )


def _refuse_unsupported(body: CompletionRequest) -> None:
    if body.suffix:
        raise InvalidRequest(
            "`suffix` (filling in the middle) is not supported; leave it out.", "suffix", "unsupported_parameter"
        )
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest(
            f"`best_of` is {body.best_of}; only the value of `n` ({body.n or 1}) is supported.",
            "best_of",
            "unsupported_value",
        )
