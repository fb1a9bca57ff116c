"""Types of `/v1/models`, `/v1/tokenize`, `/v1/detokenize`, `/health` and `/version`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cluster.api.schema_chat import MAX_MESSAGES, ChatMessage


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "manta"
    max_model_len: Annotated[
        int | None, Meta(description="Longest prompt plus output in tokens; null while no replica is ready.")
    ] = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either `prompt` or `messages`."""

    model: Annotated[str | None, Meta(description="May be left out where one model is served.")] = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: Annotated[bool | None, Meta(description="Default: true for a prompt, false for messages.")] = (
        None
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeResponse(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str | None, Meta(description="May be left out where one model is served.")] = None
    tokens: list[int]


class DetokenizeResponse(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["ok"] = "ok"


class Version(msgspec.Struct, frozen=True, kw_only=True):
    version: str
