"""A checked checkpoint becomes a model that runs on our attention: built on the meta device, filled from safetensors.

The architectures are transformers' own; its loader maps names and merges what a model merges (experts, fused
projections). What cannot run on a paged cache is refused by name, before the weights where that can be seen.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.attention import ATTENTION_NAME, AttentionStep, LayerOptions, register_attention
from engine.checkpoint import Checkpoint
from engine.config import DType
from engine.errors import BadCheckpoint, UnsupportedArchitecture
from engine.kernels.cpu import native_bf16
from engine.kv_cache import LayerShape
from engine.rank_part import RankPart
from engine.sliced_weights import SlicedWeights, sliced_class
from parallel.layout import RankLayout

#: Kinds of layer, as configs list them, that keep keys and values of every position.
_PAGED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
#: RoPE kinds whose frequencies follow the longest position of the batch, once it passes the original limit.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and what the engine must know of it."""

    module: nn.Module
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    layers: list[LayerShape]  #: what each layer of this rank caches per token
    part: RankPart
    has_streamed_layers: bool = False  #: their weights are there only while they compute (`engine.offload`)

    @property
    def first_layer(self) -> int:
        """Number of the first layer of this rank's stage."""
        return 0 if self.part.stage_cut is None else self.part.stage_cut.layers.start

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, step: AttentionStep, keep: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits [len(keep), vocabulary] for a flat batch of T tokens; `keep` None keeps all T.

        They are whole only where `part.computes_logits`; elsewhere the answer means nothing.
        """
        if self.part.stage_cut is not None and not self.part.stage_cut.is_last:
            hidden: torch.Tensor = self.module.base_model(  # type: ignore[operator]  # the next stage goes on from here
                input_ids=input_ids[None], position_ids=positions[None], use_cache=False, attention_step=step
            ).last_hidden_state
            return hidden[0, :, :0]
        output = self.module(
            input_ids=input_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=0 if keep is None else keep,
            attention_step=step,
        )
        logits: torch.Tensor = output.logits
        return logits[0]


def choose_dtype(asked: DType, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own where the device computes it natively, else float32."""
    name = checkpoint.dtype if asked is DType.AUTO else asked.value
    if asked is not DType.AUTO or device.type == "cuda":
        return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(name, torch.float32)
    return torch.bfloat16 if name == "bfloat16" and native_bf16() else torch.float32


def model_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's transformers config, after everything that can be refused before loading is refused."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each config class has its own ways to reject a value
        if checkpoint.model_type not in transformers.CONFIG_MAPPING:
            raise UnsupportedArchitecture(
                checkpoint.name,
                f"transformers {transformers.__version__} has no model type {checkpoint.model_type!r}, and code from "
                "the checkpoint (trust_remote_code) is never run",
            ) from None
        raise BadCheckpoint(str(checkpoint.path / "config.json"), f"not a valid config: {error}") from error
    refuse_unsupported(checkpoint, config)
    return config


def refuse_unsupported(checkpoint: Checkpoint, config: Any) -> None:
    """Raise `UnsupportedArchitecture`, with the reason, for what the paged engine cannot run."""
    reason = _unsupported_by_config(checkpoint, config)
    if not reason:
        reason = _unsupported_by_class(getattr(transformers, checkpoint.architecture))
    if reason:
        raise UnsupportedArchitecture(_title(checkpoint), reason)


def _unsupported_by_config(checkpoint: Checkpoint, config: Any) -> str:
    if config.is_encoder_decoder:
        return "encoder-decoder models are not served, only causal language models"
    if any(getattr(config, name, None) is not None for name in ("vision_config", "audio_config")):
        return "models with image or audio input are not served, only text models"
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(checkpoint.model_type)
    if expected is None:
        return f"model type {checkpoint.model_type} has no causal language model in transformers"
    if checkpoint.architecture != expected:
        return f"is not a causal language model (for {checkpoint.model_type} that is {expected})"
    kinds = set(getattr(config, "layer_types", None) or ()) - _PAGED_LAYER_TYPES
    if kinds:
        return f"has layers without an ordinary key-value cache: {', '.join(sorted(kinds))}"
    if getattr(config, "num_kv_shared_layers", 0):
        return "its layers share keys and values, which the paged cache does not do"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    attention = getattr(config, "attn_config", None) or config
    if checkpoint.model_type == "bloom" or getattr(attention, "alibi", False):
        return "its positions are a bias on each score (ALiBi), which the paged attention does not add"
    return ""


def _unsupported_by_class(model_class: Any) -> str:
    if getattr(model_class, "_is_stateful", False):
        return "keeps a recurrent state instead of keys and values"
    if not model_class._supports_attention_backend:
        return "transformers does not run its attention through the attention interface"
    return ""


def position_limit(checkpoint: Checkpoint, config: Any) -> int:
    """The longest sequence the model can hold; raises where its config does not say."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        raise BadCheckpoint(
            str(checkpoint.path / "config.json"), "says no max_position_embeddings: add it with the model's true limit"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    per_layer = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for parameters in per_layer:
        if parameters.get("rope_type") in _BATCH_DEPENDENT_ROPE:
            original = parameters.get("original_max_position_embeddings") or limit
            limit = min(limit, int(original))
    return limit


def load_model(
    checkpoint: Checkpoint, config: Any, *, dtype: torch.dtype, device: torch.device, part: RankPart | None = None
) -> LoadedModel:
    """Build the model (or a rank's part) and fill it; refuses weights that are missing or belong to nothing."""
    part = part or RankPart(RankLayout(), 0)
    module = load_module(checkpoint, config, dtype=dtype, device=device, part=part)
    return describe_model(checkpoint, config, module, dtype=dtype, device=device, part=part)


def load_module(
    checkpoint: Checkpoint, config: Any, *, dtype: torch.dtype, device: torch.device, part: RankPart
) -> nn.Module:
    """Build and fill, no more."""
    register_attention()
    module, report = _from_pretrained(checkpoint, config, dtype, part)
    _check_report(checkpoint, report)
    module = module.to(device).requires_grad_(False).eval()
    part.join(module, dtype, device)
    return module


def describe_model(
    checkpoint: Checkpoint,
    config: Any,
    module: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    part: RankPart,
    has_streamed_layers: bool = False,
) -> LoadedModel:
    """A filled model whose layers have been tried."""
    return LoadedModel(
        module=module,
        device=device,
        dtype=dtype,
        vocab_size=int(config.vocab_size),
        layers=_probe_layers(checkpoint, config, module, device, part),
        part=part,
        has_streamed_layers=has_streamed_layers,
    )


def _from_pretrained(
    checkpoint: Checkpoint, config: Any, dtype: torch.dtype, part: RankPart
) -> tuple[nn.Module, dict[str, Any]]:
    """The filled module, and what transformers reports about the weights."""
    if part.is_whole:
        return _call_loader(transformers.AutoModelForCausalLM, checkpoint, checkpoint.path, config, dtype)
    with ExitStack() as files:
        weights = SlicedWeights(checkpoint, part, files)
        model_class = sliced_class(getattr(transformers, checkpoint.architecture), weights)
        return _call_loader(model_class, checkpoint, None, config, dtype, state_dict=weights)


def _call_loader(
    model_class: Any, checkpoint: Checkpoint, path: Path | None, config: Any, dtype: torch.dtype, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    try:
        module, report = model_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they come in the report, and are refused with it
            output_loading_info=True,
            **options,
        )
    except ImportError as error:
        raise UnsupportedArchitecture(_title(checkpoint), f"needs a package that is not installed: {error}") from error
    return module, report


def _title(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.name} ({checkpoint.architecture})"


def _check_report(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    problems = {
        "lacks weights the model needs": sorted(report["missing_keys"]),
        "holds weights the model has no place for": sorted(report["unexpected_keys"]),
        "holds weights of another shape than config.json says": sorted(str(k) for k in report["mismatched_keys"]),
        "could not be read": [str(message) for message in report["error_msgs"]],
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(names[:_NAMES_SHOWN]) + (
                f" and {len(names) - _NAMES_SHOWN} more" if names[_NAMES_SHOWN:] else ""
            )
            raise BadCheckpoint(
                str(checkpoint.path), f"{problem}: {shown}; weights and config.json must belong together"
            )


@dataclass
class _Probe:
    """An `AttentionStep` that computes nothing and writes down what each layer asks for."""

    layers: dict[int, LayerShape] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)
    problem: str = ""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """See `AttentionStep`."""
        if layer in self.layers:
            self.problem = f"layer {layer} attends twice"
        if key.shape != value.shape or query.shape[0] != key.shape[0]:
            self.problem = (
                f"layer {layer} has keys {list(key.shape)} and values {list(value.shape)} (tokens, heads, dim)"
            )
        self.layers[layer] = LayerShape(key.shape[1], key.shape[2])
        self.windows[layer] = options.sliding_window
        return torch.zeros_like(query)


def _probe_layers(
    checkpoint: Checkpoint, config: Any, module: nn.Module, device: torch.device, part: RankPart
) -> list[LayerShape]:
    """Run two tokens through the model and see what its layers cache: exact for any architecture."""
    mine = range(config.num_hidden_layers) if part.stage_cut is None else part.stage_cut.layers
    probe = _Probe()
    with torch.inference_mode():
        tokens = torch.arange(2, device=device)[None]
        try:
            module(input_ids=tokens, position_ids=tokens, use_cache=False, logits_to_keep=1, attention_step=probe)
        except UnsupportedArchitecture:
            raise
        except Exception as error:  # whatever the model's code does with what an engine gives it
            what = "a flat batch" if part.is_whole else "its part of a flat batch"
            raise UnsupportedArchitecture(
                _title(checkpoint), f"cannot compute {what} without its own cache: {error!r}"
            ) from error
    kinds = getattr(config, "layer_types", None) or []
    for layer, kind in enumerate(kinds):
        if layer not in mine:
            continue
        if kind == "sliding_attention" and probe.windows.get(layer) != getattr(config, "sliding_window", None):
            probe.problem = f"layer {layer} should slide, but does not pass its window to the attention interface"
    if sorted(probe.layers) != list(mine):
        probe.problem = f"{len(probe.layers)} of {len(mine)} layers use the attention interface"
    if probe.problem:
        raise UnsupportedArchitecture(_title(checkpoint), probe.problem)
    return [probe.layers[layer] for layer in mine]
