"""The chain is what it says, and the executor refuses every broken plan."""

import pickle
from hashlib import blake2b

import pytest

from engine.chain_executor import UNLIKELY, ChainExecutor, PlanViolation, next_chain_token
from engine.request import SamplingParams, TokenLogprobs
from engine.step import NewSequence, ScheduledSequence, StepPlan
from tests.engine.chain_world import VOCAB_SIZE

PROMPT = [1, 2, 3]


def new(sequence_id: int = 1, prompt: list[int] = PROMPT, ending: tuple[int, ...] = (), **sampling: int) -> NewSequence:
    return NewSequence(sequence_id, prompt, len(prompt), SamplingParams(max_tokens=9, seed=0, **sampling), ending)


def plan(
    *scheduled: ScheduledSequence, news: list[NewSequence] | None = None, dropped: list[int] | None = None
) -> StepPlan:
    return StepPlan(1, dropped or [], news or [], list(scheduled))


def executor(num_blocks: int = 8) -> ChainExecutor:
    return ChainExecutor(VOCAB_SIZE, num_blocks, block_size=2)


def started() -> ChainExecutor:
    """Sequence 1 has computed its prompt in blocks 1 and 2 and sampled its fourth token."""
    chain = executor()
    chain.execute(plan(ScheduledSequence(1, 0, 3, [1, 2], True), news=[new()]))
    return chain


def test_next_token_is_the_documented_hash() -> None:
    digest = blake2b(bytes([5, 0, 0, 0, 1, 1, 0, 0]), digest_size=8).digest()
    assert next_chain_token([5, 257], 1000) == int.from_bytes(digest, "little") % 1000


def test_a_masked_token_gives_way_to_the_next() -> None:
    token_id = next_chain_token(PROMPT, VOCAB_SIZE)
    assert next_chain_token(PROMPT, VOCAB_SIZE, [token_id]) == (token_id + 1) % VOCAB_SIZE


def test_chunks_and_decode_steps_follow_the_chain() -> None:
    chain = executor()
    assert chain.execute(plan(ScheduledSequence(1, 0, 1, [3, 1], False), news=[new()])).sampled == []
    tokens = list(PROMPT)
    for item in (ScheduledSequence(1, 1, 2, [], True), ScheduledSequence(1, 3, 1, [], True)):
        (sampled,) = chain.execute(plan(item)).sampled
        assert sampled.token_id == next_chain_token(tokens, VOCAB_SIZE)
        tokens.append(sampled.token_id)


def test_a_computed_prefix_is_reused() -> None:
    chain = started()
    result = chain.execute(plan(ScheduledSequence(2, 2, 2, [1, 3], True), news=[new(2, [1, 2, 9, 9])]))
    assert result.sampled[0].token_id == next_chain_token([1, 2, 9, 9], VOCAB_SIZE)


def test_ending_tokens_are_avoided_below_min_tokens() -> None:
    ending = (next_chain_token(PROMPT, VOCAB_SIZE),)
    item = ScheduledSequence(1, 0, 3, [1, 2], True)
    (kept,) = executor().execute(plan(item, news=[new(ending=ending)])).sampled
    (avoided,) = executor().execute(plan(item, news=[new(ending=ending, min_tokens=1)])).sampled
    assert kept.token_id in ending
    assert avoided.token_id not in ending


def test_log_probabilities_say_what_the_chain_would_choose() -> None:
    right = next_chain_token([1], VOCAB_SIZE)
    wrong = (next_chain_token([1, right], VOCAB_SIZE) + 1) % VOCAB_SIZE
    item = ScheduledSequence(1, 0, 3, [1, 2], True)
    result = executor().execute(plan(item, news=[new(prompt=[1, right, wrong], logprobs=1, prompt_logprobs=1)]))
    token_id = result.sampled[0].token_id
    assert result.sampled[0].logprobs == TokenLogprobs(0.0, [(token_id, 0.0)])
    (prompt,) = result.prompt_logprobs
    assert (prompt.sequence_id, prompt.start) == (1, 0)
    assert [entry.logprob for entry in prompt.logprobs] == [0.0, UNLIKELY]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (plan(ScheduledSequence(2, 0, 1, [3], False)), "never sent"),
        (plan(dropped=[2]), "never sent"),
        (plan(news=[new(1)]), "not dropped"),
        (plan(ScheduledSequence(1, 2, 2, [], True)), "starts at 2, computed are 3"),
        (plan(ScheduledSequence(1, 4, 1, [], True)), "starts at 4, computed are 3"),
        (plan(ScheduledSequence(1, 3, 2, [], True)), "computes"),
        (plan(ScheduledSequence(1, 3, 0, [], False)), "computes"),
        (plan(ScheduledSequence(1, 3, 1, [], False)), "samples = False"),
        (plan(ScheduledSequence(1, 3, 1, [0], True)), "does not exist"),
        (plan(ScheduledSequence(1, 3, 1, [9], True)), "does not exist"),
        (plan(ScheduledSequence(2, 0, 3, [3], True), news=[new(2)]), "no block for position 2"),
        (plan(ScheduledSequence(2, 0, 3, [3, 2], True), news=[new(2)]), "which others hold"),
        (plan(ScheduledSequence(2, 2, 1, [3, 4], True), news=[new(2)]), "does not hold its prefix"),
        (plan(ScheduledSequence(2, 2, 1, [1, 3], True), news=[new(2, [1, 9, 3])]), "does not hold its prefix"),
        (plan(ScheduledSequence(2, 1, 2, [1, 3], True), news=[new(2)]), "starts at 1"),
    ],
)  # fmt: skip
def test_a_broken_plan_is_refused(broken: StepPlan, why: str) -> None:
    with pytest.raises(PlanViolation, match=why):
        started().execute(broken)


def test_writing_into_a_shared_block_is_refused() -> None:
    """Sequence 2 reuses block 1 as its prefix; 3 is given it as if it were empty."""
    chain = started()
    chain.execute(plan(ScheduledSequence(2, 2, 2, [1, 3], True), news=[new(2, [1, 2, 9, 9])], dropped=[1]))
    with pytest.raises(PlanViolation, match="which others hold"):
        chain.execute(plan(ScheduledSequence(3, 0, 2, [1, 4], False), news=[new(3)]))


def test_a_violation_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(PlanViolation(3, 1, "why")))
    assert str(error) == "step 3, sequence 1: why"
