"""`/v1/completions` through the official client, a live server and a real engine whose tokens can be computed."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from cluster.api.sampling_rules import choice_seed
from engine.chain_executor import next_chain_token
from tests.cluster.gateway_world import MODEL, client, gateway, live_server, local_generator, served_model
from tests.cluster.local_engine import LocalGenerator

TOKENIZER = served_model().tokenizer
PROMPT = "The quick brown"


class Api:
    """The official client, the generator behind it, and the address."""

    def __init__(self, url: str, generator: LocalGenerator) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.generator = generator
        self.create = self.client.completions.create

    async def refused(self, **fields: Any) -> dict[str, Any]:
        """The error body of a 400."""
        extra = {name: fields.pop(name) for name in list(fields) if name in EXTRA}
        with pytest.raises(openai.BadRequestError) as error:
            await self.create(**({"model": MODEL, "prompt": PROMPT} | fields), extra_body=extra)
        body: Any = error.value.body
        assert isinstance(body, dict)
        return body


EXTRA = {"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "return_token_ids"}


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    async with local_generator() as generator, live_server(gateway(generator)) as url:
        yield Api(url, generator)


def output_ids(prompt: list[int], count: int) -> list[int]:
    """What the chain gives after a prompt."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_chain_token(ids, TOKENIZER.vocab_size))
    return ids[len(prompt) :]


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode_now(text, True)


def text_of(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


async def test_a_whole_answer(api: Api) -> None:
    answer = await api.create(model=MODEL, prompt=PROMPT, max_tokens=20, seed=7)
    prompt = ids_of(PROMPT)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.system_fingerprint is not None
    assert answer.choices[0].text == text_of(output_ids(prompt, 20))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 20)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert api.generator.requests[0].sampling.seed == 7


async def test_sixteen_tokens_unless_told_otherwise(api: Api) -> None:
    answer = await api.create(model=MODEL, prompt=PROMPT)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


async def test_a_stream_joins_to_the_whole_answer(api: Api) -> None:
    chunks = [
        chunk
        async for chunk in await api.create(
            model=MODEL, prompt=PROMPT, max_tokens=60, stream=True, stream_options={"include_usage": True}
        )
    ]
    *pieces, last = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == text_of(output_ids(ids_of(PROMPT), 60))
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == len(ids_of(PROMPT)) + 60
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_so_far_in_every_chunk(api: Api) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await api.create(model=MODEL, prompt=PROMPT, max_tokens=9, stream=True, stream_options=options)
    counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None]
    assert counts[-1] == counts[-2] == 9
    assert counts == sorted(counts)


async def test_events_are_numbered_for_clients_that_accept_event_streams(api: Api) -> None:
    async with api.client.completions.with_streaming_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=5, stream=True, extra_headers={"Accept": "text/event-stream"}
    ) as response:
        lines = [line async for line in response.iter_lines()]
    ids = [line[4:] for line in lines if line.startswith("id: ")]
    request_id = api.generator.requests[0].request_id
    assert ids[-1] == f"{request_id}:4"
    assert all(event_id.startswith(f"{request_id}:") for event_id in ids)
    assert lines[-2:] == ["data: [DONE]", ""]


async def test_other_clients_get_data_lines_alone(api: Api) -> None:
    async with api.client.completions.with_streaming_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=5, stream=True
    ) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)


async def test_no_part_of_a_stop_string_is_sent(api: Api) -> None:
    ids = output_ids(ids_of(PROMPT), 60)
    text = text_of(ids)
    stop = text[30:34]
    assert text.index(stop) == 30
    pieces = [
        chunk.choices[0]
        async for chunk in await api.create(model=MODEL, prompt=PROMPT, max_tokens=60, stop=[stop], stream=True)
    ]
    assert "".join(piece.text for piece in pieces) == text[:30]
    assert pieces[-1].finish_reason == "stop"
    assert pieces[-1].model_extra == {"stop_reason": stop}
    whole = await api.create(model=MODEL, prompt=PROMPT, max_tokens=60, stop=stop)
    assert whole.choices[0].text == text[:30]
    assert whole.usage is not None
    assert whole.usage.completion_tokens < 60
    assert api.generator.num_in_flight == 0


async def test_a_stop_token_ends_the_text_before_it(api: Api) -> None:
    ids = output_ids(ids_of(PROMPT), 12)
    stop = next(token_id for token_id in ids[4:] if ids.index(token_id) >= 4)
    answer = await api.create(
        model=MODEL, prompt=PROMPT, max_tokens=60, extra_body={"stop_token_ids": [stop], "return_token_ids": True}
    )
    choice = answer.choices[0]
    expected = ids[: ids.index(stop) + 1]
    assert choice.finish_reason == "stop"
    assert choice.text == text_of(expected[:-1])
    assert choice.model_extra == {"stop_reason": stop, "token_ids": expected, "prompt_token_ids": ids_of(PROMPT)}


async def test_token_ids_in_a_stream(api: Api) -> None:
    stream = await api.create(
        model=MODEL, prompt=PROMPT, max_tokens=8, stream=True, extra_body={"return_token_ids": True}
    )
    extras = [chunk.choices[0].model_extra or {} async for chunk in stream]
    assert extras[0]["prompt_token_ids"] == ids_of(PROMPT)
    assert [token_id for extra in extras for token_id in extra["token_ids"]] == output_ids(ids_of(PROMPT), 8)


async def test_logprobs(api: Api) -> None:
    answer = await api.create(model=MODEL, prompt=PROMPT, max_tokens=30, logprobs=1)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert len(logprobs.tokens) == len(logprobs.text_offset) == 30
    assert logprobs.token_logprobs == [0.0] * 30
    assert logprobs.top_logprobs == [{token: 0.0} for token in logprobs.tokens]
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if not token.startswith("bytes:") and token not in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
            assert token in choice.text[offset : offset + len(token) + 1]


async def test_logprobs_in_a_stream_are_those_of_the_whole(api: Api) -> None:
    whole = (await api.create(model=MODEL, prompt=PROMPT, max_tokens=20, logprobs=0, echo=True)).choices[0]
    stream = await api.create(model=MODEL, prompt=PROMPT, max_tokens=20, logprobs=0, echo=True, stream=True)
    pieces = [chunk.choices[0] async for chunk in stream]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.logprobs is not None
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for piece in pieces for item in getattr(piece.logprobs, field)]
        assert joined == getattr(whole.logprobs, field)


async def test_echo(api: Api) -> None:
    answer = await api.create(model=MODEL, prompt=PROMPT, max_tokens=3, echo=True, logprobs=2)
    prompt = ids_of(PROMPT)
    choice = answer.choices[0]
    assert choice.text == PROMPT + text_of(output_ids(prompt, 3))
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.token_logprobs) == len(prompt) + 3
    assert choice.logprobs.text_offset[len(prompt)] == len(PROMPT)
    by_ids = await api.create(model=MODEL, prompt=prompt, max_tokens=3, echo=True)
    assert by_ids.choices[0].text == choice.text


async def test_batches_and_several_answers(api: Api) -> None:
    texts = ["The quick", "Ein schöner Tag"]
    by_texts = await api.create(model=MODEL, prompt=texts, max_tokens=6, n=2, best_of=2, seed=3)
    by_ids = await api.create(model=MODEL, prompt=[ids_of(text) for text in texts], max_tokens=6, n=2)
    expected = [text_of(output_ids(ids_of(text), 6)) for text in texts for _ in range(2)]
    for answer in (by_texts, by_ids):
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == expected
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(len(ids_of(text)) for text in texts)
        assert answer.usage.completion_tokens == 24
    requests = api.generator.requests
    assert len({request.request_id for request in requests}) == len(requests) == 8
    seeds = {request.request_id[-1]: request.sampling.seed for request in requests[:4]}
    assert seeds == {"0": 3, "1": choice_seed(3, 1), "2": 3, "3": choice_seed(3, 1)}


async def test_streamed_choices_keep_apart(api: Api) -> None:
    texts = ["The quick", "Ein schöner Tag", "x"]
    joined = dict.fromkeys(range(6), "")
    stream = await api.create(model=MODEL, prompt=texts, max_tokens=6, n=2, stream=True)
    async for chunk in stream:
        joined[chunk.choices[0].index] += chunk.choices[0].text
    assert list(joined.values()) == [text_of(output_ids(ids_of(text), 6)) for text in texts for _ in range(2)]


async def test_later_answers_find_the_prompt_in_the_cache(api: Api) -> None:
    prompt = [50 + i % 40 for i in range(100)]
    first = await api.create(model=MODEL, prompt=prompt, max_tokens=4, n=3)
    assert first.usage is not None
    assert first.usage.prompt_tokens_details is not None
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert api.generator.load is not None
    assert api.generator.load.num_cached_tokens == 2 * 96  # the second and third share its six full blocks
    second = await api.create(model=MODEL, prompt=prompt, max_tokens=4)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == 96


async def test_vllm_fields_reach_the_engine(api: Api) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 3, "ignore_eos": True}
    await api.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=4,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"70": 5, "71": -100},
        extra_body=extra,
    )
    sampling = api.generator.requests[0].sampling
    assert {name: getattr(sampling, name) for name in extra} == extra
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.9)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.logit_bias == {70: 5.0, 71: -100.0}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [10**6]}, "prompt", "invalid_value"),
        ({"prompt": [2**70]}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ({"prompt": ["a", [1]]}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 129}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"best_of": 3}, "best_of", "unsupported_value"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"max_tokens": 2**31}, "max_tokens", "context_length_exceeded"),
        ({"max_tokens": 2**63}, "max_tokens", "context_length_exceeded"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"\u0661": 1}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [99999]}, "stop_token_ids", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ],
)
async def test_refusals(fields: dict[str, Any], param: str, code: str) -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        response = await http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT} | fields)
        error = response.json()["error"]
        assert response.status_code == 400
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert generator.requests == []


async def test_the_context_has_an_exact_end(api: Api) -> None:
    limit = 2048
    answer = await api.create(model=MODEL, prompt=[70] * (limit - 1))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1
    assert answer.choices[0].finish_reason == "length"
    for length in (limit, limit + 1):
        error = await api.refused(prompt=[70] * length)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert str(limit) in error["message"]
        assert str(length) in error["message"]
    error = await api.refused(prompt=[70] * 2000, max_tokens=49)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert "2000" in error["message"]
    assert "at most 48" in error["message"]
    assert len(api.generator.requests) == 1


async def test_whitespace_is_a_prompt(api: Api) -> None:
    answer = await api.create(model=MODEL, prompt="  \n", max_tokens=2)
    assert answer.choices[0].finish_reason == "length"


async def test_errors_reach_the_client_as_its_own(api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        await api.create(model="other", prompt="x")
    assert error.value.code == "model_not_found"
    assert error.value.request_id is not None
    assert json.loads(error.value.response.text)["error"]["param"] == "model"
