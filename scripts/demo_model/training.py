"""Trains the demo model on the CPU: Muon for the matrices, AdamW for the rest, bfloat16 where the CPU has it."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from scripts.demo_model.corpus import documents
from scripts.demo_model.tokens import END, PAD, batches, save_tokenizer

SHARES = 2  # parts of a batch that are worked on at the same time, one core each


@dataclass(frozen=True)
class Shape:
    """The size of the model."""

    vocab_size: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 704
    context: int = 1024


@dataclass(frozen=True)
class Round:
    """Steps at ``peak`` times the learning rates, of which the last ``fall`` share falls linearly to nothing."""

    steps: int
    peak: float = 1.0
    fall: float = 0.35

    def rate(self, step: int) -> float:
        return self.peak * min(1.0, (self.steps - step) / (self.fall * self.steps))


@dataclass(frozen=True)
class Schedule:
    """Rounds one after the other; in each of them the last ``long_share`` of the steps has long rows.

    ``short`` and ``long`` are (row length, rows in a batch).
    """

    seed: int = 7
    rounds: tuple[Round, ...] = (Round(1300), Round(1400, peak=0.6, fall=0.85))
    warm_up: int = 60
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    short: tuple[int, int] = (256, 16)
    long: tuple[int, int] = (1024, 4)
    long_share: float = 0.12

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.rounds)

    def rate(self, step: int) -> float:
        """The factor on both learning rates at ``step``."""
        part, inside = self._place(step)
        return min(part.rate(inside), (step + 1) / self.warm_up)

    def stage(self, step: int) -> tuple[int, int]:
        """(row length, rows) at ``step``."""
        part, inside = self._place(step)
        return self.short if inside < (1 - self.long_share) * part.steps else self.long

    def _place(self, step: int) -> tuple[Round, int]:
        for part in self.rounds[:-1]:
            if step < part.steps:
                return part, step
            step -= part.steps
        return self.rounds[-1], step


@dataclass(frozen=True)
class Progress:
    step: int
    loss: float
    tokens: int
    seconds: float


def build_model(shape: Shape, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config)


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes config, bfloat16 weights, generation defaults and tokenizer as one loadable directory."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    half.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        max_new_tokens=200,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    half.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)


def loss_of(model: LlamaForCausalLM, ids: np.ndarray, learned: np.ndarray) -> torch.Tensor:
    """Mean cross-entropy over the tokens that have to be predicted; logits are made only where they count."""
    tokens = torch.from_numpy(ids)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        chosen = torch.from_numpy(learned)[:, 1:]
        logits = model.lm_head(hidden[chosen])
    return torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][chosen])


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int, count: int = 32) -> float:
    """Loss on documents of another seed."""
    ids, learned = next(batches(tokenizer, documents(seed + 1_000_003), 256, count))
    model.eval()
    loss = float(loss_of(model, ids, learned))
    model.train()
    return loss


class Run:
    """One training run: the model, its optimizers and how far it has come."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: Tokenizer, schedule: Schedule) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._schedule = schedule
        self._done, self._tokens, self._seconds, self._smooth = 0, 0, 0.0, 0.0
        matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
        others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=schedule.matrix_rate, weight_decay=0.02, momentum=0.95),
            torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def save(self, path: Path) -> None:
        """Everything that is needed to go on, as one file."""
        torch.save(
            {
                "model": self.model.state_dict(),
                "tokenizer": self._tokenizer.to_str(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
                "progress": (self._done, self._tokens, self._seconds, self._smooth),
            },
            path,
        )

    def load(self, path: Path) -> int:
        """Goes back to what :meth:`save` wrote and returns the number of steps done."""
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._done, self._tokens, self._seconds, self._smooth = saved["progress"]
        return self._done

    def train(self, report: Callable[[Progress], None], keep: Callable[[int], None]) -> Progress:
        """Runs the remaining steps; ``report`` hears of every step, ``keep`` of every hundredth."""
        schedule, began, before = self._schedule, time.monotonic(), self._seconds
        rates = (schedule.matrix_rate, schedule.other_rate)
        self.model.train()
        pool = ThreadPoolExecutor(SHARES)
        for step, (ids, learned) in enumerate(self._batches()):
            if step < self._done:
                continue
            loss = _set_gradients(self.model, pool, ids, learned)
            self._update([rate * schedule.rate(step) for rate in rates])
            self._smooth = loss if step == 0 else 0.95 * self._smooth + 0.05 * loss
            self._done, self._tokens = step + 1, self._tokens + ids.shape[0] * (ids.shape[1] - 1)
            self._seconds = before + time.monotonic() - began
            report(self.progress)
            if self._done % 100 == 0:
                keep(self._done)
        return self.progress

    def _update(self, rates: list[float]) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self._optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    @property
    def progress(self) -> Progress:
        return Progress(self._done, self._smooth, self._tokens, self._seconds)

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of all steps from the first one on, so that a resumed run sees what an unbroken one sees."""
        stream = documents(self._schedule.seed)
        current = (0, 0)
        source: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        for step in range(self._schedule.steps):
            if self._schedule.stage(step) != current:
                current = self._schedule.stage(step)
                source = batches(self._tokenizer, stream, *current)
            yield next(source)


def _set_gradients(model: LlamaForCausalLM, pool: ThreadPoolExecutor, ids: np.ndarray, learned: np.ndarray) -> float:
    """Puts the mean gradient of the batch into the model and returns the loss.

    The batch is split over Python threads that run torch on one core each and meet once per step. On a machine that
    is busy with other work this is much faster than threads inside each operation, which wait for one another there.
    """
    weights = list(model.parameters())

    def part(share: tuple[np.ndarray, np.ndarray]) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = loss_of(model, *share)
        return float(loss.detach()), torch.autograd.grad(loss, weights)

    shares = zip(np.array_split(ids, SHARES), np.array_split(learned, SHARES), strict=True)
    results = list(pool.map(part, shares))
    for place, weight in enumerate(weights):
        weight.grad = torch.stack([gradients[place] for _, gradients in results]).mean(dim=0)
    return sum(loss for loss, _ in results) / SHARES


def write_record(folder: Path, schedule: Schedule, progress: Progress, held_out: float) -> None:
    """``training.json`` beside the model: what was run and what came out."""
    record = {
        "seed": schedule.seed,
        "steps": progress.step,
        "tokens": progress.tokens,
        "minutes": round(progress.seconds / 60, 1),
        "training_loss": round(progress.loss, 4),
        "held_out_loss": round(held_out, 4),
        "torch": torch.__version__,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
