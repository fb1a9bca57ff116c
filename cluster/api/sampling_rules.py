"""From a request's sampling fields to the engine's `SamplingParams`: defaults, ranges that depend on the model,
and the length of the output."""

import hashlib
from collections.abc import Collection
from typing import TypeVar

import msgspec

from cluster.api.request_body import shown
from cluster.api.schema import SamplingFields
from cluster.config import GatewayConfig
from cluster.errors import InvalidRequest
from cluster.text.served_model import GenerationDefaults
from engine.config import EngineInfo
from engine.request import SamplingParams

_Number = TypeVar("_Number", int, float)

_GREEDY_BELOW = 1e-5  #: temperatures this small are greedy; dividing logits by less would only add noise


class LogprobsWanted(msgspec.Struct, frozen=True, kw_only=True):
    """How many rivals to report per token; None: no log probabilities at all."""

    output: int | None = None
    prompt: int | None = None


def context_limit(info: EngineInfo) -> int:
    """Most tokens of prompt and output that one sequence can have. The last one needs no place in the cache."""
    return min(info.max_model_len, info.kv_cache_tokens + 1)


def output_length(
    asked: int | None, param: str, default: int | None, num_prompt: int, info: EngineInfo, prompt_param: str = "prompt"
) -> int:
    """Tokens to generate; InvalidRequest names both numbers when the context is too short.

    `default` counts where nothing is asked (None: all that the context has left), as far as there is room.
    """
    limit = context_limit(info)
    room = limit - num_prompt
    if room < 1:
        raise InvalidRequest(
            f"This model's context is {limit} tokens, of which at least 1 is for the output; the prompt has "
            f"{num_prompt}. Shorten the prompt.",
            prompt_param,
            "context_length_exceeded",
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise InvalidRequest(
            f"This model's context is {limit} tokens; the prompt has {num_prompt} and `{param}` asks for {asked} "
            f"more. Shorten the prompt or ask for at most {room}.",
            param,
            "context_length_exceeded",
        )
    return asked


def sampling_params(
    fields: SamplingFields,
    defaults: GenerationDefaults,
    info: EngineInfo,
    max_tokens: int,
    seed: int,
    logprobs: LogprobsWanted,
) -> SamplingParams:
    """Everything an engine needs to choose tokens. `fields` has passed the schema and `check_sampling`."""
    temperature = _either(fields.temperature, defaults.temperature)
    top_p = _either(fields.top_p, defaults.top_p)
    top_k = max(0, _either(fields.top_k, defaults.top_k))
    ignore_eos = bool(fields.ignore_eos)
    more_eos = () if ignore_eos else set(defaults.eos_token_ids) - set(info.eos_token_ids)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        min_tokens=fields.min_tokens or 0,
        temperature=0.0 if temperature < _GREEDY_BELOW or top_p == 0 else temperature,
        top_k=0 if top_k >= info.vocab_size else top_k,
        top_p=top_p or 1.0,
        min_p=_either(fields.min_p, defaults.min_p),
        repetition_penalty=_either(fields.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias={int(token_id): bias for token_id, bias in (fields.logit_bias or {}).items()},
        logprobs=logprobs.output,
        prompt_logprobs=logprobs.prompt,
        stop_token_ids=tuple(sorted({*(fields.stop_token_ids or ()), *more_eos})),
        ignore_eos=ignore_eos,
    )


def check_sampling(fields: SamplingFields, info: EngineInfo, config: GatewayConfig) -> None:
    """Refuse what the schema cannot know: limits of this model and of this installation."""
    if fields.n is not None and fields.n > config.max_choices:
        raise InvalidRequest(f"`n` is {fields.n}; at most {config.max_choices} are allowed here.", "n")
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("`stream_options` is for streams; set `stream` to true or leave it out.", "stream_options")
    check_token_ids(fields.stop_token_ids or (), "stop_token_ids", info.vocab_size)
    for key in fields.logit_bias or ():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise InvalidRequest(f"`logit_bias` has the key {shown(key)}; keys are token ids.", "logit_bias")
        check_token_ids([int(key)], "logit_bias", info.vocab_size)


def check_min_tokens(fields: SamplingFields, max_tokens: int) -> None:
    """Refuse a least length over the greatest."""
    if fields.min_tokens is not None and fields.min_tokens > max_tokens:
        raise InvalidRequest(
            f"`min_tokens` is {fields.min_tokens}, more than the {max_tokens} tokens there can be.", "min_tokens"
        )


def check_logprobs(asked: int | None, param: str, config: GatewayConfig) -> None:
    """Refuse more rivals than configured."""
    if asked is not None and asked > config.max_logprobs:
        raise InvalidRequest(f"`{param}` is {asked}; at most {config.max_logprobs} are allowed here.", param)


def check_token_ids(token_ids: Collection[int], param: str, vocab_size: int) -> None:
    """Refuse an id that the model has no token for. There may be millions of them."""
    if not token_ids:
        return
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        raise InvalidRequest(
            f"`{param}` holds the token id {shown(lowest if lowest < 0 else highest)}; this model's ids are 0 to "
            f"{vocab_size - 1}.",
            param,
        )


def stop_strings(fields: SamplingFields) -> tuple[str, ...]:
    """The stop strings as a tuple."""
    if fields.stop is None:
        return ()
    return (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of `n` answers: the request's own for the first, unrelated ones for the others."""
    seed %= 2**63
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _either(given: _Number | None, default: _Number) -> _Number:
    return default if given is None else given
