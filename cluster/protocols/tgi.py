"""Text Generation Inference's API: `/generate`, `/generate_stream`, `/info`, and `/` as its clients use it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

import msgspec

from cluster.api.choice import Delta
from cluster.api.completion_format import CompletionCall
from cluster.api.completions import Completions
from cluster.api.running import run_call
from cluster.api.sampling_rules import context_limit
from cluster.api.schema import MAX_STOPS
from cluster.api.schema_completions import CompletionRequest
from cluster.api.serving import Serving
from cluster.api.stream_events import Event
from cluster.calls.record import Caller
from cluster.errors import InvalidRequest
from cluster.protocols.tgi_schema import (
    TgiAnswer,
    TgiDetails,
    TgiEvent,
    TgiInfo,
    TgiParameters,
    TgiPrefillToken,
    TgiRequest,
    TgiStreamDetails,
    TgiToken,
)
from cluster.text.tokenizer import Tokenizer
from engine.request import TokenLogprobs

DEFAULT_NEW_TOKENS = 100  #: as TGI has it
_NO_LOGPROB = TokenLogprobs(0.0)


class Tgi:
    """The endpoints."""

    def __init__(self, serving: Serving, completions: Completions, version: str) -> None:
        self._serving, self._completions, self._version = serving, completions, version

    async def prepare(self, body: TgiRequest, caller: Caller, is_stream: bool) -> CompletionCall:
        """Validate and tokenize; whatever is wrong with the request is raised here."""
        asked = body.parameters or TgiParameters()
        _refuse_unsupported(asked, is_stream)
        model = self._serving.model(body.model, caller.principal)
        prompt: str | list[int] = body.inputs
        if asked.truncate is not None:
            prompt = (await model.tokenizer.encode(body.inputs, add_special_tokens=True))[-asked.truncate :]
        samples = asked.do_sample or any(given is not None for given in (asked.temperature, asked.top_k, asked.top_p))
        wants_logprobs = is_stream or asked.details or asked.decoder_input_details or asked.top_n_tokens
        completion = CompletionRequest(
            model=model.name,
            prompt=prompt if isinstance(prompt, str) else [*prompt],
            max_tokens=asked.max_new_tokens or DEFAULT_NEW_TOKENS,
            temperature=(1.0 if asked.temperature is None else asked.temperature) if samples else 0.0,
            top_k=asked.top_k,
            top_p=asked.top_p,
            repetition_penalty=asked.repetition_penalty,
            frequency_penalty=asked.frequency_penalty,
            seed=None if asked.seed is None else asked.seed % 2**63,
            stop=asked.stop or asked.stop_sequences or None,
            logprobs=(asked.top_n_tokens or 0) if wants_logprobs else None,
            echo=bool(asked.decoder_input_details),
            stream=is_stream,
        )
        return await self._completions.prepare(_validated(completion), caller)

    async def answer(self, body: TgiRequest, call: CompletionCall) -> TgiAnswer:
        """Run to the end."""
        asked, output = body.parameters or TgiParameters(), _Output(call)
        async with aclosing(run_call(self._serving, call)) as deltas:
            async for delta in deltas:
                output.add(delta)
        text = (body.inputs if asked.return_full_text else "") + output.text
        wants_details = asked.details or asked.decoder_input_details
        return TgiAnswer(generated_text=text, details=output.details() if wants_details else None)

    async def events(self, body: TgiRequest, call: CompletionCall) -> AsyncGenerator[Event, None]:
        """Run as a stream, an event per token."""
        asked, output = body.parameters or TgiParameters(), _Output(call)
        async with aclosing(run_call(self._serving, call)) as deltas:
            async for delta in deltas:
                for event in output.events(delta, body.inputs if asked.return_full_text else ""):
                    yield Event(b"", msgspec.json.encode(event))

    def info(self, name: str | None, caller: Caller) -> TgiInfo:
        """Of one model."""
        model = self._serving.model(name, caller.principal)
        engine = self._serving.engine_info(model)
        limit = context_limit(engine)
        return TgiInfo(
            model_id=model.name,
            model_sha=engine.weights_revision,
            model_dtype=f"torch.{engine.dtype}",
            model_device_type=engine.device,
            max_input_tokens=limit - 1,
            max_total_tokens=limit,
            max_best_of=1,
            max_stop_sequences=MAX_STOPS,
            max_concurrent_requests=engine.max_num_seqs,
            max_client_batch_size=1,
            validation_workers=1,
            router="manta",
            version=self._version,
        )


class _Output:
    """What has come of the one choice."""

    def __init__(self, call: CompletionCall) -> None:
        self._call, self._tokenizer = call, call.model.tokenizer
        self.text = ""
        self._tokens: list[TgiToken] = []
        self._top: list[list[TgiToken]] = []
        self._prefill: list[TgiPrefillToken] = []
        self._last: Delta | None = None

    @property
    def _seed(self) -> int | None:
        sampling = self._call.choices[0].request.sampling
        return sampling.seed if sampling.temperature else None

    def add(self, delta: Delta) -> list[TgiToken]:
        """Returns the delta's tokens. A text that belongs to several is the last one's."""
        self.text += delta.text
        self._last = delta
        if delta.prompt_logprobs is not None:
            self._prefill = self._prefilled(delta.prompt_logprobs)
        logprobs = delta.logprobs or [_NO_LOGPROB] * len(delta.token_ids)
        tokens = [
            _token(self._tokenizer, token_id, found.logprob, "")
            for token_id, found in zip(delta.token_ids, logprobs, strict=True)
        ]
        if tokens:
            tokens[-1] = msgspec.structs.replace(tokens[-1], text=delta.text)
        self._tokens += tokens
        self._top += [
            [_token(self._tokenizer, token_id, logprob) for token_id, logprob in found.top] for found in logprobs
        ]
        return tokens

    def events(self, delta: Delta, before: str) -> list[TgiEvent]:
        """The events of one delta; the end of a stream always is an event with a token."""
        first = len(self._tokens)
        tokens = self.add(delta)
        if not tokens and delta.finish_reason is not None:
            tokens = [TgiToken(id=0, text=delta.text, logprob=0.0, special=True)]
        last = len(tokens) - 1
        return [
            TgiEvent(
                index=first + number + 1,
                token=token,
                top_tokens=self._top[first + number] if first + number < len(self._top) else [],
                generated_text=before + self.text if number == last and delta.finish_reason is not None else None,
                details=self._end() if number == last and delta.finish_reason is not None else None,
            )
            for number, token in enumerate(tokens)
        ]

    def _end(self) -> TgiStreamDetails:
        return TgiStreamDetails(
            finish_reason=_reason(self._last),
            generated_tokens=len(self._tokens),
            seed=self._seed,
            input_length=len(self._call.choices[0].request.prompt_token_ids),
        )

    def details(self) -> TgiDetails:
        """Of the whole answer."""
        return TgiDetails(
            finish_reason=_reason(self._last),
            generated_tokens=len(self._tokens),
            seed=self._seed,
            prefill=self._prefill,
            tokens=self._tokens,
            top_tokens=self._top if any(self._top) else [],
        )

    def _prefilled(self, logprobs: list[TokenLogprobs | None]) -> list[TgiPrefillToken]:
        prompt = self._call.choices[0].request.prompt_token_ids
        return [
            TgiPrefillToken(
                id=token_id,
                text=self._tokenizer.decode([token_id], skip_special_tokens=False),
                logprob=None if found is None else found.logprob,
            )
            for token_id, found in zip(prompt, logprobs, strict=True)
        ]


def _token(tokenizer: Tokenizer, token_id: int, logprob: float, text: str | None = None) -> TgiToken:
    if text is None:
        text = tokenizer.decode([token_id], skip_special_tokens=False)
    return TgiToken(id=token_id, text=text, logprob=logprob, special=token_id in tokenizer.special_ids)


def _reason(last: Delta | None) -> Literal["length", "eos_token", "stop_sequence"]:
    if last is None or last.finish_reason == "length":
        return "length"
    return "stop_sequence" if isinstance(last.stop_reason, str) else "eos_token"


def _validated(completion: CompletionRequest) -> CompletionRequest:
    """The completion's own limits hold here too."""
    try:
        return msgspec.convert(msgspec.to_builtins(completion), CompletionRequest)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`parameters`: {error}", "parameters") from None


def _refuse_unsupported(asked: TgiParameters, is_stream: bool) -> None:
    for name in ("typical_p", "watermark", "grammar", "adapter_id", "return_tensors"):
        if getattr(asked, name):
            raise InvalidRequest(f"`parameters.{name}` is not supported; leave it out.", name, "unsupported_parameter")
    if is_stream and asked.decoder_input_details:
        raise InvalidRequest(
            "`parameters.decoder_input_details` is not for streams; leave it out.", "decoder_input_details"
        )
