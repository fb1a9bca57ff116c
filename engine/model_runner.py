"""Runs the model for one step plan: flat batch in, sampled tokens out (`engine.core.StepExecutor`)."""

from threading import get_ident

import numpy as np
import torch

from engine.attention import PagedStep
from engine.core import InlineExecutor
from engine.decoder_trial import fuse_decoder
from engine.kernels.argmax import NOT_FINITE, select_best_tokens
from engine.kernels.attention_backend import AttentionBackend, select_attention
from engine.kernels.decoder import MAX_ROWS
from engine.kernels.draw import select_draw
from engine.kernels.library import Kernels
from engine.kernels.metadata import AttentionMetadata
from engine.kv_cache import KVCache
from engine.logprobs import token_logprobs
from engine.model_loader import LoadedModel
from engine.sampler import Sampled, Sampler
from engine.sampling_table import SamplingTable
from engine.sequence_table import FlatBatch, IntArray, SequenceTable
from engine.step import PromptLogprobs, SampledToken, ScheduledSequence, StepPlan, StepResult
from engine.step_progress import StepProgress
from parallel.cores import CoreShare

#: Rows of prompt logits turned into probabilities at a time, which bounds the memory they take.
_PROMPT_ROWS = 256
_NOT_FINITE_ERROR = "the model's logits are not finite (NaN or infinity)"


class ModelRunner(InlineExecutor):
    """Holds the model, its cache and what it knows of the running sequences; one per rank, not thread-safe."""

    def __init__(
        self,
        model: LoadedModel,
        cache: KVCache,
        kernels: Kernels | None,
        *,
        max_num_seqs: int,
        max_model_len: int,
        cores: CoreShare | None = None,
    ) -> None:
        self.progress = StepProgress()
        self._model = model
        self._cache = cache
        self._decoder = fuse_decoder(model, cache, kernels, self.progress)
        head_dims = {layer.head_dim for layer in model.layers}
        self._backend: AttentionBackend = select_attention(kernels, model.device, model.dtype, head_dims)
        self._sequences = SequenceTable(
            max_num_seqs=max_num_seqs, max_model_len=max_model_len, block_size=cache.block_size
        )
        self._params = SamplingTable(max_num_seqs=max_num_seqs, vocab_size=model.vocab_size)
        self._sampler = Sampler(
            self._sequences, self._params, select_best_tokens(kernels, model.device), select_draw(kernels, model.device)
        )
        self._cores = cores
        self._pinned_thread: int | None = None

    @property
    def attention_name(self) -> str:
        """Which attention implementation it runs on."""
        return self._backend.name

    @property
    def samples(self) -> bool:
        """Whether this rank samples and answers."""
        return self._model.part.computes_logits

    def learn_tokens(self, sampled: list[tuple[int, int]]) -> None:
        """Before the next plan: what the sampling rank has sampled since the last one, as (sequence, token)."""
        if not self.samples:  # that rank knows it already
            self._sequences.learn_tokens(sampled)

    def execute(self, plan: StepPlan) -> StepResult:
        """Drop, learn, compute, sample; the sampled tokens are kept for the next step.

        A rank that does not sample answers without tokens: they come with `learn_tokens`.
        """
        self.progress.begin_step()
        if self._pinned_thread != get_ident():
            self._pin_thread()
        for sequence_id in plan.dropped_ids:
            if (row := self._sequences.drop(sequence_id)) is not None:
                self._params.forget(row)
        for new in plan.new_sequences:
            self._params.set(self._sequences.add(new), new)
        if not plan.scheduled and not plan.num_padding_tokens:
            return StepResult(plan.step, [])
        batch = self._sequences.lay_out(plan.scheduled, plan.num_padding_tokens)
        sampling = np.array([entry.samples for entry in plan.scheduled], dtype=np.bool_)
        prompt_spans = self._prompt_spans(plan.scheduled, batch.rows)
        last_positions = batch.query_start[1 : len(plan.scheduled) + 1].astype(np.int64) - 1
        wanted = [last_positions[sampling]]
        wanted += [np.arange(start, end) for _, start, end in prompt_spans]
        num_sampled = len(wanted[0])
        keep = None if num_sampled == batch.num_tokens else np.concatenate(wanted)
        with torch.inference_mode():
            logits = self._forward(batch, keep)
            self.progress.tick()
            if not self.samples:
                return StepResult(plan.step, [])
            prompt_logprobs = self._prompt_logprobs(plan.scheduled, batch, prompt_spans, logits[num_sampled:])
            sampled = self._sample(logits[:num_sampled], batch.rows[sampling])
        return StepResult(plan.step, _sampled_tokens(plan.scheduled, sampled), prompt_logprobs)

    def close(self) -> None:
        """Nothing runs between steps: the tensors go with this object."""

    def _pin_thread(self) -> None:
        """Keep the thread that drives the engine, and the compute threads it will start, on the engine's cores."""
        self._pinned_thread = get_ident()
        if self._cores is not None:
            self._cores.pin_thread()

    def _forward(self, batch: FlatBatch, keep: IntArray | None) -> torch.Tensor:
        """Logits [len(keep), vocabulary] of those tokens of the flat batch, or of all of them."""
        device = self._model.device
        step = PagedStep(
            self._backend,
            self._cache,
            AttentionMetadata(
                query_start=torch.from_numpy(batch.query_start).to(device),
                context_lens=torch.from_numpy(batch.context_lens).to(device),
                block_tables=torch.from_numpy(batch.block_tables).to(device),
                max_query_len=batch.max_query_len,
                max_context_len=batch.max_context_len,
            ),
            torch.from_numpy(batch.slot_mapping).to(device),
            self.progress,
        )
        if keep is not None and not len(keep):
            keep = np.zeros(1, dtype=np.int64)  # unfinished prompts only: one row keeps the output layer's shapes usual
        ids, positions = torch.from_numpy(batch.input_ids).to(device), torch.from_numpy(batch.positions).to(device)
        kept = None if keep is None else torch.from_numpy(keep).to(device)
        if self._decoder is not None and batch.num_tokens <= MAX_ROWS:
            return self._decoder.forward(ids, positions, step.metadata, step.slot_mapping, kept)
        return self._model.forward(ids, positions, step, kept)

    def _sample(self, logits: torch.Tensor, rows: IntArray) -> Sampled:
        if not len(rows):
            return Sampled(rows, None)
        sampled = self._sampler.sample(logits, rows)
        self._sequences.append_tokens(rows, np.maximum(sampled.token_ids, 0))
        return sampled

    def _prompt_spans(self, scheduled: list[ScheduledSequence], rows: IntArray) -> list[tuple[int, int, int]]:
        """(index in `scheduled`, first token, end) in the flat batch whose logits score a prompt's next token."""
        if not self._params.prompt_logprobs:
            return []
        spans = []
        flat = 0
        for index, (entry, row) in enumerate(zip(scheduled, rows.tolist(), strict=True)):
            if row in self._params.prompt_logprobs:
                scored = min(entry.num_tokens, int(self._sequences.num_prompt_tokens[row]) - 1 - entry.start)
                if scored > 0:
                    spans.append((index, flat, flat + scored))
            flat += entry.num_tokens
        return spans

    def _prompt_logprobs(
        self,
        scheduled: list[ScheduledSequence],
        batch: FlatBatch,
        spans: list[tuple[int, int, int]],
        logits: torch.Tensor,
    ) -> list[PromptLogprobs]:
        answers = []
        for index, first, end in spans:
            entry, row = scheduled[index], int(batch.rows[index])
            span_logits, logits = logits[: end - first], logits[end - first :]
            next_ids = self._sequences.tokens[row, entry.start + 1 : entry.start + 1 + end - first].astype(np.int64)
            count = self._params.prompt_logprobs[row]
            entries = []
            for part in range(0, end - first, _PROMPT_ROWS):
                raw = span_logits[part : part + _PROMPT_ROWS].float().log_softmax(dim=-1)
                ids = next_ids[part : part + _PROMPT_ROWS]
                entries += token_logprobs(raw, ids, np.full(len(ids), count))
                self.progress.tick()
            answers.append(PromptLogprobs(entry.sequence_id, entry.start, entries))
        return answers


def _sampled_tokens(scheduled: list[ScheduledSequence], sampled: Sampled) -> list[SampledToken]:
    owners = [entry.sequence_id for entry in scheduled if entry.samples]
    token_ids = sampled.token_ids.tolist()
    logprobs = sampled.logprobs or [None] * len(owners)
    return [
        SampledToken(owner, token_id, entry)
        if token_id != NOT_FINITE
        else SampledToken(owner, 0, None, _NOT_FINITE_ERROR)
        for owner, token_id, entry in zip(owners, token_ids, logprobs, strict=True)
    ]
