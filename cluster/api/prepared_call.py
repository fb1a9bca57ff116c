"""A validated API request with the engine requests it stands for, and the count of its tokens."""

from collections.abc import Sequence

import msgspec

from cluster.api.choice import Choice, Delta, TextRules
from cluster.api.sampling_rules import choice_seed
from cluster.api.schema import PromptTokensDetails, SamplingFields, Usage
from cluster.calls.record import CallRecord
from cluster.generation import RequestContext
from cluster.text.served_model import ServedModel
from engine.request import GenerateRequest


class CallOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """What a call got when it was prepared, beside its body: with both it can be put together again anywhere."""

    id: str
    created: int
    fingerprint: str
    weights_revision: str
    block_size: int
    requests: list[GenerateRequest]  #: one per prompt; the choices are made of them


class PreparedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A validated API request, ready to run: nothing that the client gave can be wrong after this."""

    origin: CallOrigin
    model: ServedModel
    body: SamplingFields
    context: RequestContext
    choices: list[Choice]  #: prompt by prompt, `n` each

    def __post_init__(self) -> None:
        record, requests = self.record, [choice.request for choice in self.choices]
        record.num_choices, record.num_prompts = len(requests), len(requests) // self.num_answers
        record.num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests[:: self.num_answers])
        record.max_output_tokens = sum(request.sampling.max_tokens for request in requests)

    @property
    def id(self) -> str:
        return self.origin.id

    @property
    def record(self) -> CallRecord:
        """What is written down of it."""
        assert self.context.record is not None
        return self.context.record

    @property
    def num_answers(self) -> int:
        """Choices per prompt."""
        return self.body.n or 1

    @property
    def usage_in_stream(self) -> bool:
        """Whether the client wants a last chunk with the usage."""
        options = self.body.stream_options
        return bool(options is not None and options.include_usage)

    @property
    def usage_in_every_chunk(self) -> bool:
        """Whether every chunk is to hold the usage so far."""
        options = self.body.stream_options
        return self.usage_in_stream and bool(options is not None and options.continuous_usage_stats)


class UsageTally:
    """Counts a call's tokens: each prompt once, every choice's output. `outputs`: what has been counted before."""

    def __init__(self, call: PreparedCall, outputs: Sequence[int] = ()) -> None:
        self._step = call.num_answers
        self._prompt = sum(len(choice.request.prompt_token_ids) for choice in call.choices[:: self._step])
        self._outputs = list(outputs) or [0] * len(call.choices)
        self._cached = 0

    def add(self, delta: Delta) -> None:
        """Count what a delta brings."""
        if delta.next_index > self._outputs[delta.choice]:
            self._outputs[delta.choice] = delta.next_index
        if delta.choice % self._step == 0:
            self._cached += delta.num_cached_tokens

    def usage(self) -> Usage:
        """The count so far."""
        output = sum(self._outputs)
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=output,
            total_tokens=self._prompt + output,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached),
        )


def spread_choices(requests: Sequence[GenerateRequest], n: int, model: ServedModel, rules: TextRules) -> list[Choice]:
    """`n` choices of each request, prompt by prompt, each with an id and a seed of its own."""
    choices: list[Choice] = []
    alone = len(requests) * n == 1
    for request in requests:
        for answer in range(n):
            index = len(choices)
            own = msgspec.structs.replace(
                request,
                request_id=request.request_id if alone else f"{request.request_id}-{index}",
                sampling=msgspec.structs.replace(request.sampling, seed=choice_seed(request.sampling.seed, answer)),
            )
            choices.append(Choice(index, own, model.tokenizer, rules))
    return choices
