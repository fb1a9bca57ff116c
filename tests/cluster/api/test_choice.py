"""One growing output: what the client sees does not depend on how its tokens are cut into chunks."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.api.choice import Choice, Delta, TextRules
from cluster.errors import DeadlineExceeded, EngineFailed
from engine.request import FinishReason, GenerateRequest, SamplingParams, TokenChunk, TokenLogprobs
from tests.cluster.gateway_world import served_model

TOKENIZER = served_model().tokenizer
TEXT = "The lazy dog. Ein schöner Tag 👩‍👩‍👧 stop here END and more"
IDS = TOKENIZER.encode_now(TEXT, False)


def run(ids: list[int], cuts: list[int], rules: TextRules, finish: FinishReason, **sampling: object) -> list[Delta]:
    params = SamplingParams(max_tokens=len(ids), seed=0, **sampling)  # type: ignore[arg-type]
    request = GenerateRequest(request_id="r", prompt_token_ids=[5], sampling=params)
    choice = Choice(0, request, TOKENIZER, rules)
    deltas = []
    edges = sorted({0, len(ids), *(cut % len(ids) for cut in cuts)})
    for left, right in pairwise(edges):
        logprobs = None if params.logprobs is None else [TokenLogprobs(-0.5) for _ in ids[left:right]]
        chunk = TokenChunk("r", 0, left, ids[left:right], logprobs, finish if right == len(ids) else None)
        deltas.append(choice.feed(chunk))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


def joined(deltas: list[Delta]) -> tuple[str, list[int], str | None, int | str | None]:
    ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert deltas[-1].next_index == len(ids)
    return "".join(delta.text for delta in deltas), ids, deltas[-1].finish_reason, deltas[-1].stop_reason


cuts_strategy = st.lists(st.integers(0, 1000), max_size=20)


@given(cuts_strategy)
def test_text_is_whole_whatever_the_chunks(cuts: list[int]) -> None:
    text, ids, finish, _ = joined(run(IDS, cuts, TextRules(), FinishReason.LENGTH))
    assert (text, ids, finish) == (TEXT, IDS, "length")


@given(cuts_strategy, st.integers(0, len(TEXT) - 4))
def test_a_stop_string_cuts_text_and_tokens_alike(cuts: list[int], start: int) -> None:
    stop = TEXT[start : start + 3]
    rules = TextRules(stops=(stop,))
    text, ids, finish, reason = joined(run(IDS, cuts, rules, FinishReason.LENGTH))
    assert (text, finish, reason) == (TEXT[: TEXT.index(stop)], "stop", stop)
    assert stop in TOKENIZER.decode(ids, skip_special_tokens=False)
    assert stop not in TOKENIZER.decode(ids[:-1], skip_special_tokens=False)


@given(cuts_strategy)
def test_offsets_point_at_tokens(cuts: list[int]) -> None:
    deltas = run(IDS, cuts, TextRules(), FinishReason.LENGTH, logprobs=0)
    offsets = [offset for delta in deltas for offset in delta.offsets]
    logprobs = [found for delta in deltas for found in delta.logprobs or ()]
    assert len(offsets) == len(logprobs) == len(IDS)
    for token_id, offset in zip(IDS, offsets, strict=True):
        spelled = TOKENIZER.token_bytes(token_id).decode(errors="replace")
        assert "\ufffd" in spelled or TEXT.startswith(spelled, offset)


def test_the_ending_token_is_counted_and_not_shown() -> None:
    ids = [*IDS[:4], IDS[5]]
    shown = TOKENIZER.decode(IDS[:4], skip_special_tokens=True)
    by_model = joined(run(ids, [], TextRules(), FinishReason.STOP))
    assert by_model == (shown, ids, "stop", None)
    by_client = joined(run(ids, [2], TextRules(named_stop_ids=frozenset({IDS[5]})), FinishReason.STOP))
    assert by_client == (shown, ids, "stop", IDS[5])


def test_an_end_that_begins_a_stop_string_is_given_out() -> None:
    text, _, finish, _ = joined(run(IDS, [3, 5], TextRules(stops=("moreover",)), FinishReason.LENGTH))
    assert (text, finish) == (TEXT, "length")


def test_stop_strings_wait_for_the_least_length() -> None:
    rules = TextRules(stops=("The",))
    text, *_ = joined(run(IDS, [1, 2], rules, FinishReason.LENGTH, min_tokens=1))
    assert text == TEXT
    text, *_ = joined(run(IDS, [1, 2], rules, FinishReason.LENGTH))
    assert text == ""


@pytest.mark.parametrize(
    ("finish", "error"), [(FinishReason.ERROR, EngineFailed), (FinishReason.ABORT, DeadlineExceeded)]
)
def test_a_failed_request_is_an_error(finish: FinishReason, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(IDS, [], TextRules(), finish)
