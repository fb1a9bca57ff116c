"""The chain engine as a model that is served."""

import pytest

from cluster.config import ModelConfig
from cluster.text.served_model import ServedModel
from engine.chain_executor import next_chain_token
from engine.chain_startup import VOCAB_SIZE, start_chain_engine
from engine.config import ChainConfig, EngineConfig
from engine.errors import ConfigError
from engine.request import GenerateRequest, SamplingParams

PROMPT = [5, 6, 7]


def first_token(weights: int) -> int:
    core, info = start_chain_engine(EngineConfig(), ChainConfig(step_s=0.0, weights=weights))
    assert info.weights_revision == f"chain-{weights}"
    sampling = SamplingParams(max_tokens=4, seed=0)
    core.scheduler.add(GenerateRequest(request_id="r", prompt_token_ids=PROMPT, sampling=sampling), 0.0)
    chunks = core.step(0.0)
    assert chunks is not None
    return chunks[0].token_ids[0]


def test_its_tokens_are_the_chain_of_its_weights() -> None:
    assert first_token(0) == next_chain_token(PROMPT, VOCAB_SIZE)
    assert first_token(1) == next_chain_token(PROMPT, VOCAB_SIZE, weights=1) != first_token(0)


def test_a_smaller_cache_takes_shorter_sequences() -> None:
    _, info = start_chain_engine(EngineConfig(kv_cache_tokens=640, block_size=16), ChainConfig())
    assert (info.max_model_len, info.num_blocks) == (640, 40)
    with pytest.raises(ConfigError, match="max_model_len"):
        start_chain_engine(EngineConfig(kv_cache_tokens=640, max_model_len=641), ChainConfig())


def test_it_shares_the_vocabulary_of_the_demo_model() -> None:

    model = ModelConfig(model="chain")
    assert ServedModel.load(model.served_name, model.location).tokenizer.vocab_size == VOCAB_SIZE
