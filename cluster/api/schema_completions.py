"""Types of `/v1/completions`."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cluster.api.schema import SamplingFields, Usage

TokenIds = list[int]


class CompletionRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prompt is taken as it is: no chat template; the text of a special token stands for that token."""

    prompt: Annotated[
        str | list[str | int | TokenIds],
        Meta(description="A text, token ids, a list of texts, or a list of lists of token ids."),
    ]
    best_of: Annotated[int, Meta(ge=1, description="Only the value of `n` is accepted.")] | None = None
    echo: Annotated[bool | None, Meta(description="Put the prompt before each answer.")] = None
    logprobs: (
        Annotated[int, Meta(ge=0, description="Log probabilities of each token and its so many best rivals.")] | None
    ) = None
    suffix: Annotated[str | None, Meta(description="Not supported; only null or an empty text.")] = None
    add_special_tokens: Annotated[
        bool | None, Meta(description="Whether the tokenizer adds its own tokens, such as BOS (default: true).")
    ] = None


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: Annotated[list[int], Meta(description="Where each token begins in the choice's text.")] = []


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: Annotated[
        int | str | UnsetType | None, Meta(description="The stop string, or the id of `stop_token_ids`, that was met.")
    ] = UNSET
    token_ids: Annotated[list[int] | UnsetType, Meta(description="With `return_token_ids`.")] = UNSET
    prompt_token_ids: Annotated[
        list[int] | UnsetType, Meta(description="With `return_token_ids`; of a stream in the first chunk.")
    ] = UNSET


class CompletionResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or with `stream` one chunk of it (there with `usage` only when asked for)."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
