"""Whether a model may run on the fused decoder: both are tried, and the logits must be equal to the last bit.

No list of models: what the structure of the modules does not show (a multiplier, another order, a cap) shows in the
logits.
"""

import logging
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from engine.attention import LayerOptions, PagedStep
from engine.kernels.attention import NativeAttention
from engine.kernels.decoder import AttentionOptions, DecoderParts, FusedDecoder, HeadShape, find_parts, head_shape
from engine.kernels.library import KERNELS_VARIABLE, Kernels, layers_stay_modules
from engine.kernels.metadata import AttentionMetadata
from engine.kv_cache import KVCache
from engine.model_loader import LoadedModel
from engine.step_progress import StepProgress

log = logging.getLogger(__name__)

#: Tokens that each of three sequences computes in each step of the trial: prompts, then single tokens, then one alone.
_TRIAL = ((9, 1, 21), (1, 1, 1), (0, 1, 0))


class _StayModules(Exception):
    """The fused decoder does not compute this model; says why."""


def fuse_decoder(
    model: LoadedModel, cache: KVCache, kernels: Kernels | None, progress: StepProgress
) -> FusedDecoder | None:
    """The model's layers as one call over `cache`; None, and a line in the log, where they stay modules."""
    if kernels is None or model.device.type != "cpu" or model.dtype is not torch.bfloat16:
        return None
    if model.has_streamed_layers:
        return None  # their weights come one layer after the other
    if layers_stay_modules():
        log.info("the layers stay modules: %s=modules", KERNELS_VARIABLE)
        return None
    try:
        parts, shape = _known_parts(model)
        with torch.inference_mode():
            options = _try(model, parts, shape, kernels, cache.block_size)
    except _StayModules as why:
        log.info("the layers stay modules: %s", why)
        return None
    log.info("%d layers run as one call in steps of few tokens", len(options))
    return FusedDecoder(kernels, parts, shape, options, cache.keys, cache.values, progress.kernel_ticks)


def _known_parts(model: LoadedModel) -> tuple[DecoderParts, HeadShape]:
    parts, layer = find_parts(model.module), model.layers[0]
    if not model.part.agree(parts is not None) or parts is None:
        raise _StayModules("they do not consist of the parts that the fused decoder knows")
    shape = head_shape(parts, layer.num_kv_heads, layer.head_dim)
    if shape is None or len(set(model.layers)) != 1 or not NativeAttention.supports(model.dtype, layer.head_dim):
        raise _StayModules("the fused decoder does not know such heads or sizes")
    return parts, shape


def _try(
    model: LoadedModel, parts: DecoderParts, shape: HeadShape, kernels: Kernels, block_size: int
) -> list[AttentionOptions]:
    """What each layer's attention asks for, once both ways have given the same logits."""
    batches = _trial_batches(model.vocab_size, block_size)
    recorder = _Recorder(NativeAttention(kernels), _trial_cache(model, batches, block_size))
    neighbours, ours = _Neighbours(), _trial_cache(model, batches, block_size)
    with model.part.beside(neighbours):
        logits = [model.forward(batch.ids, batch.positions, recorder.at(batch), None) for batch in batches]
        expected = neighbours.sent or logits
        neighbours.sent = []
        options = recorder.options()
        decoder = FusedDecoder(kernels, parts, shape, options, ours.keys, ours.values, StepProgress().kernel_ticks)
        for batch, theirs in zip(batches, expected, strict=True):
            try:
                fused = decoder.forward(batch.ids, batch.positions, batch.metadata, batch.slots, None)
            except (TypeError, ValueError, RuntimeError) as error:  # its embeddings want or give something else
                raise _StayModules(str(error)) from error
            if not model.part.agree(torch.equal(fused, theirs)):
                raise _StayModules("together they compute something else than the fused decoder")
    return options


@dataclass(frozen=True)
class _Batch:
    """One step of the trial."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    metadata: AttentionMetadata


def _trial_batches(vocab_size: int, block_size: int) -> list[_Batch]:
    """The steps of `_TRIAL` on random tokens; sequence s has the blocks from 1 + s * blocks_each on."""
    generator = torch.Generator().manual_seed(0)
    totals = [0] * len(_TRIAL[0])
    blocks_each = -(-max(map(sum, zip(*_TRIAL, strict=True))) // block_size)
    tables = 1 + torch.arange(len(totals) * blocks_each, dtype=torch.int32).view(len(totals), blocks_each)
    batches = []
    for counts in _TRIAL:
        positions = torch.cat([torch.arange(t, t + count) for t, count in zip(totals, counts, strict=True)])
        totals = [t + count for t, count in zip(totals, counts, strict=True)]
        sequences = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
            context_lens=torch.tensor(totals, dtype=torch.int32),
            block_tables=tables,
            max_query_len=max(counts),
            max_context_len=max(totals),
        )
        slots = tables[sequences, positions // block_size].long() * block_size + positions % block_size
        ids = torch.randint(vocab_size, positions.shape, generator=generator)
        batches.append(_Batch(ids, positions, slots, metadata))
    return batches


def _trial_cache(model: LoadedModel, batches: list[_Batch], block_size: int) -> KVCache:
    num_blocks = 1 + int(batches[0].metadata.block_tables.max())
    return KVCache(
        model.layers,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=model.dtype,
        device=model.device,
        first_layer=model.first_layer,
    )


class _Neighbours:
    """In the place of the other pipeline stages: gives the same for steps of so many tokens, keeps what it gets."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def receive(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `StagePipe`."""
        generator = torch.Generator().manual_seed(hidden.shape[-2])
        return hidden.copy_(torch.randn(hidden.shape, generator=generator))

    def send(self, hidden: torch.Tensor) -> None:
        """See `StagePipe`."""
        self.sent.append(hidden.clone().flatten(0, -2))


@dataclass
class _Recorder:
    """Attends as the engine does and writes down what each layer asked for."""

    backend: NativeAttention
    cache: KVCache
    asked: dict[int, LayerOptions] = field(default_factory=dict)
    step: PagedStep | None = None

    def at(self, batch: _Batch) -> "_Recorder":
        """Attend for this batch from now on."""
        self.step = PagedStep(self.backend, self.cache, batch.metadata, batch.slots, StepProgress())
        return self

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """See `AttentionStep`."""
        assert self.step is not None
        self.asked[layer] = options
        return self.step.attend(layer, query, key, value, options)

    def options(self) -> list[AttentionOptions]:
        """Of the layers in order."""
        asked = [options for _, options in sorted(self.asked.items())]
        if any(options.sinks is not None for options in asked):
            raise _StayModules("their attention has sinks")
        return [AttentionOptions(options.scale, options.sliding_window, options.softcap) for options in asked]
