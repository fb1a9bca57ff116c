"""The sampler: each option against its definition, draws against their distribution, rows independent of each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.argmax import NOT_FINITE, BestTokens, best_tokens, select_best_tokens
from engine.kernels.draw import Draw, DrawOptions, draw, select_draw
from engine.kernels.library import load_kernels
from engine.random_draw import seed_key, uniform
from engine.request import SamplingParams
from engine.sampler import Sampled, Sampler
from engine.sampling_table import SamplingTable
from engine.sequence_table import SequenceTable
from engine.step import NewSequence

VOCAB = 300
PROMPT = [5, 6, 7, 5]
CPU = torch.device("cpu")
BEST_TOKENS = select_best_tokens(load_kernels(), CPU)
DRAWS = {"torch": draw, "here": select_draw(load_kernels(), CPU)}


class World:
    """A table of sequences, one for each set of parameters, whose outputs so far are given."""

    def __init__(self, vocab_size: int = VOCAB, max_num_seqs: int = 64, draw: Draw = DRAWS["here"]) -> None:
        self.sequences = SequenceTable(max_num_seqs=max_num_seqs, max_model_len=512, block_size=16)
        self.params = SamplingTable(max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self.sampler = Sampler(self.sequences, self.params, BEST_TOKENS, draw)
        self.rows: list[int] = []

    def add(self, output: list[int] | None = None, ending: tuple[int, ...] = (), **options: object) -> "World":
        fields = {"max_tokens": 100, "seed": len(self.rows), "temperature": 0.0, **options}
        new = NewSequence(
            len(self.rows),
            PROMPT + (output or []),
            len(PROMPT),
            SamplingParams(**fields),
            ending,  # type: ignore[arg-type]
        )
        row = self.sequences.add(new)
        self.params.set(row, new)
        self.rows.append(row)
        return self

    def sample(self, logits: torch.Tensor) -> Sampled:
        return self.sampler.sample(logits.clone(), np.array(self.rows, dtype=np.int64))


def random_logits(rows: int, vocab_size: int = VOCAB, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("search", [best_tokens, BEST_TOKENS], ids=["torch", "here"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [VOCAB, 3, 9001])
def test_best_token_is_the_first_best(vocab_size: int, dtype: torch.dtype, search: BestTokens) -> None:
    logits = random_logits(4, vocab_size)
    logits = torch.cat([logits, -logits.abs() - 1.0]).to(dtype)
    logits[0, [1, vocab_size - 1]] = 50.0
    logits[5, [0, 2]] = -0.25
    logits[6, :-1] = float("-inf")
    logits[7] = float("-inf")
    expected = logits.float().numpy().argmax(axis=1)
    expected[7] = NOT_FINITE
    assert (expected[0], expected[5], expected[6]) == (1, 0, vocab_size - 1)
    assert search(logits).tolist() == expected.tolist()
    assert search(logits[1:, : vocab_size - 1]).tolist()[4] == 0
    for bad in (float("nan"), -float("nan"), float("inf")):
        for place in (0, vocab_size - 1):
            spoiled = logits.clone()
            spoiled[2, place] = bad
            assert search(spoiled).tolist() == [*expected[:2], NOT_FINITE, *expected[3:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"logprobs": 2}])
def test_a_row_that_is_not_finite_is_flagged_alone(dtype: torch.dtype, bad: float, options: dict[str, object]) -> None:
    logits = random_logits(3).to(dtype)
    expected = best_tokens(logits)
    logits[1, 77] = bad
    sampled = World().add().add(**options).add().sample(logits)
    assert sampled.token_ids.tolist() == [expected[0], NOT_FINITE, expected[2]]


def frequencies(draw: Draw, logits: torch.Tensor, num_draws: int = 20000, **options: object) -> np.ndarray:
    """How often each token is drawn by sequences that differ in their seed only."""
    world = World(logits.shape[1], num_draws, draw).add(**{"temperature": 1.0, **options})
    params, first = world.params, world.rows[0]
    for column in (params.temperature, params.top_k, params.top_p, params.min_p, params.is_untouched):
        column[:] = column[first]
    params.seed[:] = np.arange(num_draws)
    sampled = world.sampler.sample(logits.expand(num_draws, -1).clone(), np.arange(num_draws))
    return np.bincount(sampled.token_ids, minlength=logits.shape[1])


def deviation(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic lies above what a true sample gives on average."""
    expected = probabilities * counts.sum()
    likely = expected > 5
    degrees = max(1, np.count_nonzero(likely) - 1)
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    return float((statistic - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("draw", list(DRAWS.values()), ids=list(DRAWS))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_plain_draws_follow_the_softmax(draw: Draw, temperature: float) -> None:
    logits = random_logits(1, scale=1.5)
    counts = frequencies(draw, logits, temperature=temperature)
    assert deviation(counts, (logits[0] / temperature).softmax(-1).numpy()) < 4


def truncated(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    """The distribution by definition: sort, cut, renormalise."""
    order = logits.argsort(descending=True)
    weights = logits[order].double().softmax(-1).numpy()
    if top_k:
        weights[top_k:] = 0.0
    weights /= weights.sum()
    weights[np.cumsum(weights) - weights >= top_p] = 0.0
    weights[weights < min_p * weights[0]] = 0.0
    answer = np.zeros(len(weights))
    answer[order.numpy()] = weights / weights.sum()
    return answer


@pytest.mark.parametrize("draw", list(DRAWS.values()), ids=list(DRAWS))
@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 7},
        {"top_k": 100},
        {"top_p": 0.7},
        {"top_p": 0.97},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)
def test_truncated_draws_follow_their_definition(draw: Draw, cut: dict[str, float]) -> None:
    logits = random_logits(1, scale=1.5)
    expected = truncated(logits[0], **cut)  # type: ignore[arg-type]
    counts = frequencies(draw, logits, **cut)
    assert not counts[expected == 0].any(), "a token that is cut away was drawn"
    assert deviation(counts, expected) < 4


@pytest.mark.parametrize("draw", list(DRAWS.values()), ids=list(DRAWS))
def test_top_p_reaches_beyond_the_best_thousand(draw: Draw) -> None:
    """A nearly flat distribution: the kept set is far wider than the first groups looked at."""
    counts = frequencies(draw, torch.linspace(0.0, -0.01, 2500)[None], num_draws=400, top_p=0.9)
    assert counts[1024:2200].sum() > 100
    assert counts[2260:].sum() == 0


@pytest.mark.parametrize("draw", list(DRAWS.values()), ids=list(DRAWS))
def test_a_vanishing_top_p_leaves_the_best_token(draw: Draw) -> None:
    logits = random_logits(1)
    assert frequencies(draw, logits, num_draws=50, top_p=1e-9)[best_tokens(logits)[0]] == 50


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.sampled_from([2, 31, 300, 3001]),
    scale=st.sampled_from([0.01, 1.0, 6.0, 60.0]),
    bf16=st.booleans(),
)
def test_torch_and_kernels_draw_the_same(seed: int, vocab_size: int, scale: float, bf16: bool) -> None:
    """A stream that moves to a machine without kernels goes on as it would have."""
    rng = np.random.default_rng(seed)
    logits = random_logits(24, vocab_size, seed, scale)
    logits = logits.to(torch.bfloat16) if bf16 else logits
    options = DrawOptions(
        temperature=rng.choice(np.float32([0.3, 1.0, 2.0]), 24),
        top_k=rng.choice([0, 1, 5, 64, 900], 24),
        top_p=rng.choice(np.float32([1e-9, 0.5, 0.9, 1.0]), 24),
        min_p=rng.choice(np.float32([0.0, 0.1]), 24),
        uniform=rng.random(24),
    )
    by_torch, here = DRAWS["torch"](logits, options), DRAWS["here"](logits, options)
    if bf16:  # ties at the edge of a cut may fall either way in torch's top-k
        assert np.mean(by_torch == here) > 0.5
    else:
        assert np.count_nonzero(by_torch != here) <= 1  # a number that lands on a boundary within rounding


def test_uniform_numbers_are_even_and_independent() -> None:
    keys = np.full(50000, seed_key(-3), dtype=np.uint64)
    drawn = uniform(keys, np.arange(50000))
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    counts = np.bincount((drawn * 100).astype(int), minlength=100)
    assert deviation(counts, np.full(100, 0.01)) < 4
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    neighbours = uniform(np.arange(50000, dtype=np.uint64), np.zeros(50000, dtype=np.int64))
    assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1]) < 0.02
    assert abs(neighbours.mean() - 0.5) < 0.01


ROWS: list[dict[str, object]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 0.7, "top_k": 150, "top_p": 0.9},
    {"temperature": 1.3, "top_p": 0.95},
    {"temperature": 1.0, "min_p": 0.2},
    {"repetition_penalty": 1.5, "output": [1, 2, 1]},
    {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5, "output": [1, 2, 1]},
    {"logit_bias": {3: 100.0}},
    {"min_tokens": 5, "ending": (8, 9), "temperature": 1.0},
    {"temperature": 1.0, "logprobs": 3},
]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(len(ROWS))), bf16=st.booleans())
def test_a_row_does_not_depend_on_the_rows_beside_it(seed: int, order: list[int], bf16: bool) -> None:
    logits = random_logits(len(ROWS), seed=seed)
    logits = logits.to(torch.bfloat16) if bf16 else logits  # rounding makes ties
    alone = [
        World().add(**{"seed": seed, **ROWS[i]}).sample(logits[i : i + 1])
        for i in order  # type: ignore[arg-type]
    ]
    world = World()
    for i in order:
        world.add(**{"seed": seed, **ROWS[i]})  # type: ignore[arg-type]
    together = world.sample(logits[torch.tensor(order)])
    assert together.token_ids.tolist() == [one.token_ids[0] for one in alone]
    assert together.logprobs is not None
    assert together.logprobs == [None if one.logprobs is None else one.logprobs[0] for one in alone]


def test_repetition_penalty_counts_prompt_and_output_presence_and_frequency_output_only() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5], logits[0, 40], logits[0, 41] = 4.0, 3.0, 2.5
    assert World().add().sample(logits).token_ids[0] == 5
    assert World().add(repetition_penalty=2.0).sample(logits).token_ids[0] == 40
    assert World().add(presence_penalty=2.0).sample(logits).token_ids[0] == 5
    assert World().add(presence_penalty=2.0, output=[5]).sample(logits).token_ids[0] == 40
    assert World().add(frequency_penalty=0.6, output=[5]).sample(logits).token_ids[0] == 5
    assert World().add(frequency_penalty=0.6, output=[5, 5]).sample(logits).token_ids[0] == 40
    assert World().add(frequency_penalty=0.6, output=[5, 5, 40]).sample(logits).token_ids[0] == 5
    negative = -torch.ones(1, VOCAB)
    negative[0, 6] = -0.9
    assert World().add().sample(negative).token_ids[0] == 6
    assert World().add(repetition_penalty=2.0).sample(negative).token_ids[0] not in PROMPT


def test_presence_penalty_falls_once_however_often_a_token_came() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 40], logits[0, 41] = 3.0, 1.5
    assert World().add(presence_penalty=1.0, output=[40, 40, 40]).sample(logits).token_ids[0] == 40


def test_logit_bias_and_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 8], logits[0, 9], logits[0, 10] = 5.0, 4.0, 3.0
    assert World().add(logit_bias={8: -100.0}).sample(logits).token_ids[0] == 9
    assert World().add(logit_bias={60: 100.0, VOCAB + 7: 100.0}).sample(logits).token_ids[0] == 60
    world = World().add(min_tokens=2, ending=(8, 9, VOCAB + 1))
    assert world.sample(logits).token_ids[0] == 10
    world.sequences.append_tokens(np.array(world.rows), np.array([1]))
    assert world.sample(logits).token_ids[0] == 10
    world.sequences.append_tokens(np.array(world.rows), np.array([1]))
    assert world.sample(logits).token_ids[0] == 8


def test_logprobs_are_of_the_distribution_before_any_processing() -> None:
    logits = random_logits(2)
    world = World().add(temperature=0.3, top_k=2, logit_bias={17: 100.0}, logprobs=3).add(logprobs=0)
    sampled = world.sample(logits)
    expected = logits.log_softmax(dim=-1)
    assert sampled.logprobs is not None and sampled.logprobs[0] is not None and sampled.logprobs[1] is not None
    assert sampled.token_ids[0] == 17
    assert sampled.logprobs[0].logprob == pytest.approx(expected[0, 17].item(), abs=1e-5)
    best = expected[0].topk(3)
    assert [token_id for token_id, _ in sampled.logprobs[0].top] == best.indices.tolist()
    assert [value for _, value in sampled.logprobs[0].top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert sampled.logprobs[1].top == []
    assert sampled.logprobs[1].logprob == pytest.approx(expected[1].max().item(), abs=1e-5)
