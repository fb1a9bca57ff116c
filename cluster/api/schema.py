"""What the OpenAI endpoints share: sampling fields, stream options, usage, the error body.

The descriptions are the API reference (`/docs`, `/openapi.json`). Each endpoint's own types are in
`api_schema_chat`, `api_schema_completions` and `api_schema_tokens`.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_LOGIT_BIAS = 300
MAX_STOPS = 4
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64

Ignored = Annotated[Any, Meta(description="Accepted for compatibility and ignored.")]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_usage: Annotated[bool | None, Meta(description="Send the usage in a last chunk.")] = None
    continuous_usage_stats: Annotated[
        bool | None, Meta(description="With `include_usage`: the usage so far in every chunk.")
    ] = None
    include_obfuscation: Ignored = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of both generating endpoints. Where the model's `generation_config.json` has a default for one
    of temperature, top_p, top_k, min_p and repetition_penalty, it counts when the request leaves it out."""

    model: Annotated[str, Meta(description="A name listed by `/v1/models`.")]
    n: Annotated[int, Meta(ge=1, description="Answers per prompt.")] | None = None
    stream: Annotated[bool | None, Meta(description="Answer with server-sent events, token by token.")] = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1, description="Most tokens to generate.")] | None = None
    min_tokens: Annotated[int, Meta(ge=0, description="No end before so many tokens.")] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2, description="0 is greedy.")] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1, description="Least probability mass kept; 0 is greedy.")] | None = None
    top_k: Annotated[int, Meta(ge=-1, description="Candidates kept; 0 or -1: all.")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1, description="Share of the best's probability to be kept.")] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10, description="Over prompt and output; 1 is off.")] | None = (
        None
    )
    presence_penalty: Annotated[float, Meta(ge=-2, le=2, description="Over the output; 0 is off.")] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description="Over the output; 0 is off.")] | None = None
    seed: (
        Annotated[
            int,
            Meta(
                ge=-(2**63),
                le=2**63 - 1,
                description="The same seed and request give the same tokens, alone or in any batch. Unset: drawn.",
            ),
        ]
        | None
    ) = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Meta(ge=-100, le=100)]],
            Meta(max_length=MAX_LOGIT_BIAS, description="Token id to what is added to its logit."),
        ]
        | None
    ) = None
    stop: (
        Annotated[
            StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)],
            Meta(description="The output ends before the first of these; no part of it is ever sent."),
        ]
        | None
    ) = None
    stop_token_ids: (
        Annotated[
            list[int], Meta(max_length=MAX_STOP_TOKEN_IDS, description="Tokens that end the output, as the EOS does.")
        ]
        | None
    ) = None
    ignore_eos: Annotated[bool | None, Meta(description="Go on after an end-of-sequence token.")] = None
    skip_special_tokens: Annotated[
        bool | None, Meta(description="Leave special tokens out of the text (default: true).")
    ] = None
    return_token_ids: Annotated[
        bool | None, Meta(description="Add `prompt_token_ids` and `token_ids` to the answer.")
    ] = None
    user: Annotated[
        Any, Meta(description="A text names the session, for `router.policy` `session_affinity`; else ignored.")
    ] = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: Annotated[int, Meta(description="Prompt tokens found in the prefix cache.")] = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    message: Annotated[str, Meta(description="What is wrong, with the value given, and what to do.")]
    type: str
    param: Annotated[str | None, Meta(description="The request's field that is wrong.")] = None
    code: Annotated[str | None, Meta(description="A stable name of the error.")] = None


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    error: ErrorBody
