"""No input is the server's fault: whatever the body says, the answer is a success or a 4xx with the OpenAI body."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.api.schema_chat import ChatRequest
from cluster.api.schema_completions import CompletionRequest
from cluster.api.schema_tokens import DetokenizeRequest, TokenizeRequest
from tests.cluster.gateway_world import MODEL, client, gateway, local_generator

PATHS = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/tokenize": TokenizeRequest,
    "/v1/detokenize": DetokenizeRequest,
}
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["<|im_end|>", "\0", "text", "user", "\ufdd0"]),
)
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=20)},
        optional={"name": plain, "tool_calls": anything, "reasoning_content": plain},
    ),
    max_size=3,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    path = draw(st.sampled_from(sorted(PATHS)))
    fields = sorted(set(PATHS[path].__struct_fields__) - {"max_tokens", "max_completion_tokens", "n"})
    valid = {
        "model": MODEL,
        "prompt": draw(st.text(max_size=10) | st.lists(st.integers(-1, 500), max_size=5)),
        "messages": draw(messages),
        "tokens": draw(st.lists(st.integers(-1, 500), max_size=5)),
        "max_tokens": 3,
    }
    body = {name: value for name, value in valid.items() if name in PATHS[path].__struct_fields__}
    for name in draw(st.lists(st.sampled_from(fields), max_size=4)):
        body[name] = draw(anything)
    return path, body


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(bodies(), min_size=5, max_size=5))
async def test_any_fields(requests: list[tuple[str, dict[str, Any]]]) -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        for path, body in requests:
            response = await http.post(path, json=body)
            assert response.status_code in (200, 400, 404), (path, body, response.text)
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            else:
                assert "error" not in response.text[:20]
                assert '{"error"' not in response.text
        assert generator.num_in_flight == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.from_regex(rb'\{"model":"small",.{0,40}\}?', fullmatch=True), max_size=8))
async def test_any_bytes(raw_bodies: list[bytes]) -> None:
    headers = {"content-type": "application/json"}
    async with local_generator() as generator, client(gateway(generator)) as http:
        for raw in raw_bodies:
            response = await http.post("/v1/completions", content=raw, headers=headers)
            assert response.status_code in (400, 404), raw
            assert json.loads(response.text)["error"]["message"]
