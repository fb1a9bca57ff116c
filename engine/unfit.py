"""Which requests can never run on an engine, whatever else runs there."""

from engine.config import EngineInfo
from engine.request import GenerateRequest


def why_unfit(request: GenerateRequest, info: EngineInfo) -> str:
    """Why `request` can never run on that engine; empty if it can."""
    total = len(request.prompt_token_ids) + request.sampling.max_tokens
    if not request.prompt_token_ids:
        return "the prompt is empty; give at least one token"
    if len(request.output_token_ids) >= request.sampling.max_tokens:
        return f"all of its max_tokens = {request.sampling.max_tokens} are generated already"
    if total > info.max_model_len:
        return f"prompt and max_tokens make {total} tokens, the model holds {info.max_model_len}"
    if total - 1 > info.kv_cache_tokens:  # the last token is never computed
        return f"prompt and max_tokens make {total} tokens, the KV cache holds {info.kv_cache_tokens}"
    if not 0 <= min(request.prompt_token_ids) <= max(request.prompt_token_ids) < info.vocab_size:
        return f"a prompt token is outside of the vocabulary of {info.vocab_size}"
    return ""
