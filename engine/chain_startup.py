"""The built-in `chain` model as an engine that is ready at once: no torch, no file, a pace as configured.

For measuring and testing what surrounds an engine: whoever reads its streams can compute what they must be.
"""

from engine.chain_executor import ChainExecutor
from engine.config import ChainConfig, EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.errors import ConfigError
from engine.scheduler import Scheduler
from engine.step_progress import StepProgress

VOCAB_SIZE = 2048  #: that of the demo model, whose tokenizer it shares
MAX_MODEL_LEN = 32768
KV_CACHE_TOKENS = 1 << 19


def start_chain_engine(config: EngineConfig, chain: ChainConfig) -> tuple[EngineCore, EngineInfo]:
    """The engine, with nothing running; it never ends a sequence by itself. Raises `ConfigError`."""
    capacity = config.kv_cache_tokens or KV_CACHE_TOKENS
    max_model_len = config.max_model_len or min(MAX_MODEL_LEN, capacity)
    if max_model_len > capacity:
        raise ConfigError("engine.max_model_len", max_model_len, f"the cache holds {capacity} tokens: raise that")
    info = EngineInfo(
        model_path="chain",
        architecture="Chain",
        weights_revision=f"chain-{chain.weights}",
        dtype="none",
        device="none",
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=capacity // config.block_size,
        max_num_seqs=config.max_num_seqs,
    )
    executor = ChainExecutor(
        VOCAB_SIZE, info.num_blocks, info.block_size, chain.step_s, chain.token_s, weights=chain.weights
    )
    progress = StepProgress()
    progress.longest_gap_s = chain.step_s + chain.token_s * config.max_batched_tokens  # it sleeps, and shows nothing
    return EngineCore(Scheduler(config, info), executor, progress), info
