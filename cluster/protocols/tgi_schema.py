"""Types of Text Generation Inference's API, as its clients send and read them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_TOP_TOKENS = 5


class TgiParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How to generate. Greedy unless `do_sample`, or one of temperature, top_k, top_p, says otherwise."""

    max_new_tokens: Annotated[int, Meta(ge=1)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(gt=0)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    stop: list[str] | None = None
    stop_sequences: list[str] | None = None  #: the older name
    truncate: Annotated[int, Meta(ge=1, description="Keep so many of the prompt's last tokens.")] | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    top_n_tokens: Annotated[int, Meta(ge=0, le=MAX_TOP_TOKENS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=1, description="Only 1.")] | None = None
    typical_p: Any = None  #: these five are refused where they ask for something
    watermark: bool | None = None
    grammar: Any = None
    adapter_id: Any = None
    return_tensors: Any = None


class TgiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body; `stream` counts at `/` alone. `model` is needed where several are served."""

    inputs: str
    parameters: TgiParameters | None = None
    stream: bool | None = None
    model: str | None = None


class TgiToken(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    text: str
    logprob: float
    special: bool


class TgiPrefillToken(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    text: str
    logprob: float | None


class TgiDetails(msgspec.Struct, frozen=True, kw_only=True):
    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    generated_tokens: int
    seed: int | None
    prefill: list[TgiPrefillToken]
    tokens: list[TgiToken]
    top_tokens: list[list[TgiToken]]


class TgiAnswer(msgspec.Struct, frozen=True, kw_only=True):
    generated_text: str
    details: TgiDetails | None = None


class TgiStreamDetails(msgspec.Struct, frozen=True, kw_only=True):
    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    generated_tokens: int
    seed: int | None
    input_length: int


class TgiEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One token; with the last one the whole text. A stream that ends without that has failed."""

    index: int
    token: TgiToken
    top_tokens: list[TgiToken]
    generated_text: str | None
    details: TgiStreamDetails | None


class TgiInfo(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    model_sha: str | None
    model_dtype: str
    model_device_type: str
    max_input_tokens: int
    max_total_tokens: int
    max_best_of: int
    max_stop_sequences: int
    max_concurrent_requests: int
    max_client_batch_size: int
    validation_workers: int
    router: str
    version: str
