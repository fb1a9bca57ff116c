"""Types of `/v1/chat/completions`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cluster.api.schema import Ignored, SamplingFields, Usage

MAX_MESSAGES = 4096


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Annotated[str, Meta(description="`text`; other kinds are refused.")]
    text: str | None = None
    image_url: Annotated[Any, Meta(description="Refused: the models served here read text.")] = None
    input_audio: Annotated[Any, Meta(description="Refused: the models served here read text.")] = None
    file: Annotated[Any, Meta(description="Refused: the models served here read text.")] = None
    refusal: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Text that spells a special token is read as text, never as the token."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool", "function"],
        Meta(description="`developer` is read as `system`; `tool` and `function` are refused."),
    ]
    content: Annotated[
        str | list[ContentPart] | None, Meta(description="A text, or text parts (joined by line ends).")
    ] = None
    name: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    reasoning_content: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    tool_calls: Annotated[Any, Meta(description="Not supported; only null or an empty list.")] = None
    function_call: Annotated[Any, Meta(description="Not supported; only null.")] = None
    tool_call_id: Annotated[Any, Meta(description="Not supported; only null.")] = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: Annotated[Any, Meta(description="Not supported; only null.")] = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: (
        Annotated[
            int,
            Meta(
                ge=1,
                description="As `max_tokens`, and before it. Unset: what the context holds; where tokens are limited, "
                "a quarter of the limit at most.",
            ),
        ]
        | None
    ) = None
    logprobs: Annotated[bool | None, Meta(description="Add each token's log probability.")] = None
    top_logprobs: (
        Annotated[int, Meta(ge=0, description="With `logprobs`: so many best rivals of each token.")] | None
    ) = None
    add_generation_prompt: Annotated[
        bool | None, Meta(description="End the prompt with the beginning of an answer (default: true).")
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Meta(description="Go on with the last message instead; `add_generation_prompt` must be false."),
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        Meta(description="Whether the tokenizer adds its own tokens to what the template gives (default: false)."),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="More variables for the chat template.")
    ] = None
    chat_template: Annotated[Any, Meta(description="Refused: templates come with the model.")] = None
    response_format: Annotated[dict[str, Any] | None, Meta(description='Only `{"type": "text"}` in this release.')] = (
        None
    )
    tools: Annotated[Any, Meta(description="Not supported; only null or an empty list.")] = None
    tool_choice: Annotated[Any, Meta(description="Not supported; only null, `none` or `auto`.")] = None
    functions: Annotated[Any, Meta(description="Not supported; only null or an empty list.")] = None
    function_call: Annotated[Any, Meta(description="Not supported; only null, `none` or `auto`.")] = None
    modalities: Annotated[list[str] | None, Meta(description='Only `["text"]`.')] = None
    audio: Annotated[Any, Meta(description="Not supported; only null.")] = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Annotated[Any, Meta(description="Names the session before `user` does; else ignored.")] = None
    safety_identifier: Ignored = None
    reasoning_effort: Ignored = None
    verbosity: Ignored = None


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: Annotated[list[int], Meta(description="Joined over tokens they are the text's UTF-8.")]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    stop_reason: Annotated[
        int | str | UnsetType | None, Meta(description="The stop string, or the id of `stop_token_ids`, that was met.")
    ] = UNSET
    token_ids: Annotated[list[int] | UnsetType, Meta(description="With `return_token_ids`.")] = UNSET


class ChatResponse(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: Annotated[list[int] | UnsetType, Meta(description="With `return_token_ids`.")] = UNSET


class MessageDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: Annotated[
        list[int] | UnsetType, Meta(description="With `return_token_ids`: in the first chunk.")
    ] = UNSET
