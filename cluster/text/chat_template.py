"""Renders a conversation to the text a model was trained on, as `transformers` does, in a sandbox."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.errors import InvalidRequest
from engine.errors import BadCheckpoint

#: Noncharacters of Unicode: one that occurs in no message marks what must not be read as a special token.
_MARKERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


class ChatTemplate:
    """One compiled template; stateless but for its clock. `source` is named in errors."""

    def __init__(
        self,
        template: str,
        special_tokens: Mapping[str, str],
        source: str,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment(now).from_string(template)
        except jinja2.TemplateError as error:
            raise BadCheckpoint(source, f"the chat template cannot be compiled: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text; InvalidRequest where the template refuses the conversation."""
        given = {**self._special_tokens, **(variables or {})}
        given.update(messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None)
        try:
            return self._template.render(given)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", "messages", "template_error"
            ) from None

    def render_unfinished(
        self, messages: Sequence[Mapping[str, Any]], end_mark: str, variables: Mapping[str, Any] | None = None
    ) -> str:
        """As `render`, but the prompt ends within the last message, for the model to go on with it.

        `end_mark` is text that no message holds. A template that trims messages trims this one too.
        """
        *earlier, last = messages
        tagged = {**last, "content": f"{last['content']}{end_mark} "}
        text = self.render([*earlier, tagged], add_generation_prompt=False, variables=variables)
        at = text.rfind(end_mark)
        if at == -1:
            raise InvalidRequest(
                "The model's chat template leaves the last message out of the prompt, so it cannot be continued.",
                "continue_final_message",
            )
        trimmed = text[at + len(end_mark) :][:1] != " "
        return text[:at].rstrip() if trimmed else text[:at]


def unused_marker(texts: Sequence[str]) -> str:
    """A character that none of the texts holds."""
    for marker in _MARKERS:
        if not any(marker in text for text in texts):
            return marker
    raise InvalidRequest("The messages hold every noncharacter of Unicode; leave one out.", "messages")


class _GenerationBlock(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what an assistant said, for training; here it is inert."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
