"""Bodies: every wrong one is a 400 that names the field, its value and what is right."""

import json
from typing import Any

import msgspec
import pytest

from cluster.api.request_body import convert_fields, decode_body, shown
from cluster.api.schema_chat import ChatRequest
from cluster.api.schema_completions import CompletionRequest
from cluster.errors import InvalidRequest

COMPLETION = msgspec.json.Decoder(CompletionRequest)
CHAT = msgspec.json.Decoder(ChatRequest)
VALID = {"model": "m", "prompt": "p"}


def refusal(body: bytes, decoder: msgspec.json.Decoder[Any] = COMPLETION) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        decode_body(body, decoder)
    return refused.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"model": "m", "prompt": "p"} x',
        b'\xef\xbb\xbf{"model": "m", "prompt": "p"}',
        '{"model": "m", "prompt": "p"}'.encode("utf-16"),
        b'{"model": "m", "prompt": "\xff"}',
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": "m", "prompt": "\\ud800abc"}',
        b'{"model": "m", "prompt": "\\udc00"}',
        b'{"model": "m", "prompt": "p", "temperature": NaN}',
        b'{"model": "m", "prompt": "p", "temperature": Infinity}',
        b'{"model": "m", "prompt": "p", "temperature": -Infinity}',
        b'{"model": "m", "prompt": "p", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "prompt": "p"',
        b"{'model': 'm'}",
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    assert refusal(body).code == "invalid_json"


@pytest.mark.parametrize("body", [b"[" * 100_000, b"null", b"[]", b'"text"', b"1"])
def test_what_is_no_object(body: bytes) -> None:
    error = refusal(body)
    assert error.status == 400
    assert "expected `object`" in error.message


def test_nul_is_text_like_any_other() -> None:
    assert decode_body(b'{"model": "m", "prompt": "a\\u0000b"}', COMPLETION).prompt == "a\0b"


def test_of_a_key_given_twice_the_last_counts() -> None:
    body = decode_body(b'{"model": "a", "prompt": "p", "model": "b"}', COMPLETION)
    assert body.model == "b"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": [1, 2.0]}, "prompt[1]", "invalid_type"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]", "invalid_type"),
        ({"prompt": [[[1]]]}, "prompt[0][0]", "invalid_type"),
        ({"temperature": 2.0001}, "temperature", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_type"),
        ({"min_p": 1.5}, "min_p", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": "x"}, "seed", "invalid_type"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"stop": "x" * 10_240}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": None}}, "logit_bias", "invalid_type"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids", "invalid_value"),
        ({"logprobs": -1}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include": True}}, "stream_options.include", "unknown_parameter"),
        ({"guided_json": {}}, "guided_json", "unknown_parameter"),
        ({"Temperature": 1}, "Temperature", "unknown_parameter"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refusal(json.dumps(VALID | fields).encode())
    assert (error.param, error.code) == (param, code)
    assert f"`{param}`" in error.message
    with pytest.raises(InvalidRequest) as refused:
        convert_fields(VALID | fields, CompletionRequest)
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"content": "x"}, "messages[0].role", "missing_required_parameter"),
        ({"role": "king", "content": "x"}, "messages[0].role", "invalid_value"),
        ({"role": "user", "content": 5}, "messages[0].content", "invalid_type"),
        ({"role": "user", "content": "x", "mood": 1}, "messages[0].mood", "unknown_parameter"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type", "missing_required_parameter"),
        (5, "messages[0]", "invalid_type"),
    ],
)
def test_wrong_messages_are_named(message: Any, param: str, code: str) -> None:
    error = refusal(json.dumps({"model": "m", "messages": [message]}).encode(), CHAT)
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "x"}] * 10_000])
def test_a_conversation_has_a_sane_length(messages: list[Any]) -> None:
    error = refusal(json.dumps({"model": "m", "messages": messages}).encode(), CHAT)
    assert (error.param, error.code) == ("messages", "invalid_value")
    assert f"a list of {len(messages)}" in error.message


def test_what_is_missing_is_named() -> None:
    error = refusal(b'{"prompt": "p"}')
    assert (error.param, error.code) == ("model", "missing_required_parameter")


def test_ignored_fields_take_anything() -> None:
    ignored = {name: {"any": ["thing"]} for name in ("user", "metadata", "store", "service_tier")}
    body = decode_body(json.dumps(VALID | ignored).encode(), COMPLETION)
    assert body.user == {"any": ["thing"]}


@pytest.mark.parametrize("fields", [{"prompt": "\ud800"}, {"user": object()}, {"temperature": float("nan")}])
def test_python_values_that_json_cannot_say(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        convert_fields(VALID | fields, CompletionRequest)


def test_errors_show_values_but_not_prompts() -> None:
    assert shown(2.5) == "2.5"
    assert shown(None) == "null"
    assert len(shown("secret" * 1000)) < 100
    assert shown(["secret"]) == "a list of 1"
