"""Templates render as `transformers` renders them, in a sandbox, and their refusals reach the client."""

from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from cluster.errors import InvalidRequest
from cluster.text.chat_template import ChatTemplate, unused_marker
from engine.errors import BadCheckpoint
from tests.cluster.gateway_world import CHAT_TEMPLATE

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Say <b>hé</b> \U0001f389 "},
    {"role": "assistant", "content": "Well, "},
]
LLAMA_KIND = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if loop.index0 > 10 %}{% break %}{% endif %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}
"""
JSON_KIND = """{% for message in messages %}
    {% generation %}{{ message | tojson }}{% endgeneration %}
{{ (message.content | tojson(indent=2)) }}
{% endfor %}{% if tools is none and not documents and extra is defined %}{{ extra }}{% endif %}"""
TEMPLATES = [CHAT_TEMPLATE, LLAMA_KIND, JSON_KIND]


def compiled(template: str) -> ChatTemplate:
    return ChatTemplate(template, {"bos_token": "<s>"}, "here")


def by_transformers(template: str, **options: Any) -> str:
    rendered, _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=template, bos_token="<s>", extra="yes", **options
    )
    return str(rendered[0])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers(template: str, add_generation_prompt: bool) -> None:
    ours = compiled(template).render(MESSAGES, add_generation_prompt=add_generation_prompt, variables={"extra": "yes"})
    assert ours == by_transformers(template, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA_KIND])
def test_continues_the_last_message_as_transformers(template: str) -> None:
    ours = compiled(template).render_unfinished(MESSAGES, "\ufdd0\ufdd0", {"extra": "yes"})
    assert ours == by_transformers(template, continue_final_message=True)


def test_the_clock_is_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, "here", lambda: datetime(2026, 11, 24))
    assert template.render(MESSAGES) == "24 Nov 2026"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('only two turns') }}", "only two turns"),
        ("{{ messages[7].content.strip() }}", "refuses"),
        ("{{ messages + 1 }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
    ],
)
def test_what_a_template_refuses_is_the_clients_fault(template: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        compiled(template).render(MESSAGES)
    assert refused.value.param == "messages"


def test_a_template_that_drops_the_last_message_cannot_continue_it() -> None:
    with pytest.raises(InvalidRequest, match="leaves the last message out"):
        compiled("{{ messages[0].content }}").render_unfinished(MESSAGES, "\ufdd0\ufdd0")


def test_a_broken_template_is_a_bad_checkpoint() -> None:
    with pytest.raises(BadCheckpoint, match="cannot be compiled"):
        compiled("{% for %}")


def test_the_marker_is_in_no_text() -> None:
    assert unused_marker(["\ufdd0", "a\ufdd1"]) == "\ufdd2"
    with pytest.raises(InvalidRequest):
        unused_marker(["".join(map(chr, range(0xFDD0, 0xFDF0)))])
