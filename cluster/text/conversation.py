"""A chat request's messages on their way to token ids: checked, rendered by the model's template, encoded.

What a client writes never becomes a control token: where it spells one, `chat_template.unused_marker` breaks it
before the template sees it, and the tokenizer takes the mark out again (`Tokenizer.encode_marked`).
"""

import asyncio
from typing import Any

import msgspec

from cluster.api.schema_chat import ChatMessage, ChatRequest, ContentPart
from cluster.api.schema_tokens import TokenizeRequest
from cluster.errors import InvalidRequest
from cluster.text.chat_template import ChatTemplate, unused_marker
from cluster.text.served_model import ServedModel
from cluster.text.tokenizer import Tokenizer

_OFF_LOOP_CHARS = 4096  #: longer conversations are rendered in a thread
_MAX_DEPTH = 16


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Messages and how to render them."""

    messages: list[ChatMessage]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    variables: dict[str, Any] = {}

    @classmethod
    def of(cls, body: ChatRequest | TokenizeRequest) -> "Conversation":
        """Check what a request says about its messages."""
        unfinished = bool(body.continue_final_message)
        if unfinished and body.add_generation_prompt:
            raise InvalidRequest(
                "`continue_final_message` and `add_generation_prompt` cannot both be true.", "continue_final_message"
            )
        return cls(
            messages=body.messages or [],
            add_generation_prompt=not unfinished and body.add_generation_prompt is not False,
            continue_final_message=unfinished,
            add_special_tokens=bool(body.add_special_tokens),
            variables=body.chat_template_kwargs or {},
        )

    async def tokenize(self, model: ServedModel) -> list[int]:
        """The prompt's ids; InvalidRequest where messages or template do not allow it."""
        template = model.chat_template
        if template is None:
            raise InvalidRequest(
                "This model has no chat template, so it cannot chat; use `/v1/completions`, or serve it from a "
                "directory with a `chat_template.jinja`.",
                "model",
                "no_chat_template",
            )
        messages = [_plain(message, index) for index, message in enumerate(self.messages)]
        texts = _texts(messages, "messages") + _texts(self.variables, "chat_template_kwargs")
        marker = unused_marker(texts)
        arguments = (template, model.tokenizer, messages, marker)
        if sum(map(len, texts)) > _OFF_LOOP_CHARS:
            text = await asyncio.to_thread(self._render, *arguments)
        else:
            text = self._render(*arguments)
        ids = await model.tokenizer.encode_marked(text, marker, add_special_tokens=self.add_special_tokens)
        if not ids:
            raise InvalidRequest("`messages` render to a prompt without a token.", "messages")
        return ids

    def _render(self, template: ChatTemplate, tokenizer: Tokenizer, messages: list[dict[str, Any]], marker: str) -> str:
        messages = _marked(messages, tokenizer, marker)
        variables = _marked(self.variables, tokenizer, marker)
        if self.continue_final_message:
            return template.render_unfinished(messages, marker * 2, variables)
        return template.render(messages, add_generation_prompt=self.add_generation_prompt, variables=variables)


def _plain(message: ChatMessage, index: int) -> dict[str, Any]:
    """A message as templates expect it."""
    where = f"messages[{index}]"
    if message.role in ("tool", "function"):
        raise InvalidRequest(
            f"`{where}.role` is '{message.role}'; tools are not supported, use system, user or assistant.",
            f"{where}.role",
            "unsupported_value",
        )
    for name in ("tool_calls", "function_call", "tool_call_id", "audio"):
        if getattr(message, name):
            raise InvalidRequest(
                f"`{where}.{name}` is not supported; leave it out.", f"{where}.{name}", "unsupported_parameter"
            )
    if message.content is None:
        raise InvalidRequest(f"`{where}.content` is null; give a text.", f"{where}.content")
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message.content, where),
    }
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    return plain


def _content(content: str | list[ContentPart], where: str) -> str:
    if isinstance(content, str):
        return content
    if not content:
        raise InvalidRequest(f"`{where}.content` is an empty list; give a text.", f"{where}.content")
    for index, part in enumerate(content):
        param = f"{where}.content[{index}]"
        if part.type != "text":
            raise InvalidRequest(
                f"`{param}.type` is {part.type[:64]!r}; the models served here read only parts of type 'text'.",
                f"{param}.type",
                "unsupported_value",
            )
        if part.text is None:
            raise InvalidRequest(f"`{param}.text` is missing; it is required.", f"{param}.text")
    return "\n".join(part.text or "" for part in content)


def _texts(value: Any, param: str) -> list[str]:
    """Every text inside a value; InvalidRequest where it is nested too deep for a template."""
    texts: list[str] = []
    level = [value]
    for _ in range(_MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                texts.append(item)
            elif isinstance(item, dict):
                texts += item
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
        if not deeper:
            return texts
        level = deeper
    raise InvalidRequest(f"`{param}` is nested deeper than {_MAX_DEPTH} levels.", param)


def _marked(value: Any, tokenizer: Tokenizer, marker: str) -> Any:
    """The same value with every special-token text broken."""
    if isinstance(value, str):
        return tokenizer.mark(value, marker)
    if isinstance(value, dict):
        return {key: _marked(item, tokenizer, marker) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, tokenizer, marker) for item in value]
    return value
