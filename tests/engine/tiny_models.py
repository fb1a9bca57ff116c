"""Tiny random models of many architectures, drawn from a seed: two layers, small, with clear best tokens."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB_SIZE = 128
EOS = 2
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GPT2_STYLE = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 96}

#: model type -> what its config needs beside the common part
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 12},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 12,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": 12},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "decoder_sparse_step": 1,
    },
    "gpt2": _GPT2_STYLE,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {},
    "hunyuan_v1_dense": {"head_dim": 16},
    "gpt_neox": {},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.25, "logits_scaling": 2.0, "residual_multiplier": 0.8},
    "cohere": {},
    "starcoder2": {"sliding_window": 12},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layers": [1, 0]},
    "deepseek_v3": {  # keys and values of different sizes
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
    "gpt_oss": {
        "head_dim": 16,
        "sliding_window": 12,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}

#: Without a plan in transformers; DeepSpeed's AutoTP has one for tensor parallelism.
PLANNED_BY_AUTO_TP = ("opt", "persimmon", "hunyuan_v1_dense")

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
#: Others that many ranks have been seen to compute; tried by the slow tests alone.
MORE: dict[str, dict[str, Any]] = {
    "olmo": {},
    "olmo3": {"sliding_window": 12},
    "qwen2_moe": {
        **_EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 48,
        "decoder_sparse_step": 1,
    },
    "ernie4_5": {"head_dim": 16},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_layer_start_index": 0},
    "exaone4": {"sliding_window": 12, "head_dim": 16},
    "seed_oss": {"head_dim": 16},
    "phi": {},
    "gemma": {"head_dim": 16},
    "glm": {"head_dim": 16},
    "glm4_moe": {
        **_EXPERTS,
        "head_dim": 16,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "cohere2": {"sliding_window": 12},
    "helium": {"head_dim": 16},
    "apertus": {},
    "arcee": {},
    "jais2": {},
    "ministral": {"head_dim": 16, "sliding_window": 12},
    "vaultgemma": {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
}
#: Those of all these that transformers has no plan of stages for.
ONE_STAGE = (*PLANNED_BY_AUTO_TP, "granitemoe", "olmoe", "phimoe", "hunyuan_v1_moe")


def tiny_config(model_type: str, **changes: Any) -> Any:
    """The transformers config of a tiny model."""
    return AutoConfig.for_model(
        model_type, **{**_COMMON, **SPECIAL.get(model_type, MORE.get(model_type, {})), **changes}
    )


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A float32 transformers model. Weights are scaled so that the best token leads clearly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                fan_in = parameter.shape[-1] if parameter.ndim == 2 else parameter.shape[-2]
                parameter.normal_(0.0, 1.5 * fan_in**-0.5, generator=generator)
            elif "norm" not in name and "ln_" not in name:
                parameter.normal_(0.0, 0.2, generator=generator)
    return model


def save_tiny_model(model_type: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a complete checkpoint folder (without a tokenizer)."""
    tiny_model(model_type, seed, **changes).save_pretrained(folder, max_shard_size=changes.pop("max_shard_size", "5GB"))
    return folder
