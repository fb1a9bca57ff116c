"""How long an engine step takes: a linear model of what the plan computes, fitted to measured steps.

    seconds = a + b * decode sequences + c * prefill tokens + d * context tokens

A sequence that computes one token is a decode sequence, all other tokens are prefill tokens; the context of a
sequence is all its tokens up to the last one computed, whose keys and values the step reads.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from engine.config import EngineConfig, EngineInfo
from engine.errors import ConfigError
from engine.step import StepPlan

SHIPPED = Path(__file__).parent / "cost_models"
VOCAB_SIZE = 2**32  #: of a simulated engine: a token id can name a request
EOS_TOKEN_ID = 0
_DISTURBED = 1.5
Seconds = Annotated[float, Meta(ge=0.0)]


class MeasuredStep(msgspec.Struct, frozen=True, array_like=True):
    """One step of a real engine: what it computed and how long it took."""

    num_decodes: int
    num_prefill_tokens: int
    num_context_tokens: int
    seconds: float


class FitQuality(msgspec.Struct, frozen=True):
    """How well a fit repeats the steps it was made from."""

    num_steps: int
    num_disturbed: int  #: left out: other processes had the cores
    r_squared: float
    median_error: float  #: of the relative errors' sizes
    total_error: float  #: relative, of the sum of all steps


class CostModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine's speed and size."""

    name: str
    source: str  #: where the numbers come from, for people
    is_measured: bool
    step_s: Seconds  #: a
    decode_s: Seconds  #: b, per decode sequence
    prefill_s: Seconds  #: c, per prefill token
    context_s: Seconds  #: d, per context token
    max_num_seqs: Annotated[int, Meta(ge=1)]
    max_batched_tokens: Annotated[int, Meta(ge=1)]
    block_size: Annotated[int, Meta(ge=1)]
    num_blocks: Annotated[int, Meta(ge=1)]
    max_model_len: Annotated[int, Meta(ge=2)]
    fit: FitQuality | None = None

    def seconds(self, step: tuple[int, int, int]) -> float:
        """Time of a step with these `contents`."""
        num_decodes, num_prefill_tokens, num_context_tokens = step
        return (
            self.step_s
            + self.decode_s * num_decodes
            + self.prefill_s * num_prefill_tokens
            + self.context_s * num_context_tokens
        )

    def engine_config(self) -> EngineConfig:
        """Settings of the simulated engines."""
        return EngineConfig(
            max_num_seqs=self.max_num_seqs, max_batched_tokens=self.max_batched_tokens, block_size=self.block_size
        )

    def engine_info(self) -> EngineInfo:
        """What a simulated engine says of itself."""
        return EngineInfo(
            model_path=self.name, architecture="Simulated", weights_revision=self.name, dtype="none", device="none",
            vocab_size=VOCAB_SIZE, max_model_len=self.max_model_len, block_size=self.block_size,
            num_blocks=self.num_blocks, max_num_seqs=self.max_num_seqs, eos_token_ids=(EOS_TOKEN_ID,),
        )  # fmt: skip


def contents(plan: StepPlan) -> tuple[int, int, int]:
    """Decode sequences, prefill tokens and context tokens of a step."""
    num_decodes = num_prefill_tokens = num_context_tokens = 0
    for item in plan.scheduled:
        num_tokens = item.num_tokens
        if num_tokens == 1:
            num_decodes += 1
        else:
            num_prefill_tokens += num_tokens
        num_context_tokens += item.start + num_tokens
    return num_decodes, num_prefill_tokens, num_context_tokens


def fit_steps(steps: Sequence[MeasuredStep]) -> tuple[tuple[float, float, float, float], FitQuality]:
    """The constants a, b, c, d, none below zero, that repeat the steps with the least relative squared error.

    Relative: else the few long prefill steps would set everything and the many decode steps nothing. Steps that took
    over `_DISTURBED` times what the fit says are left out and it is made again, as long as that changes anything.
    Raises `ConfigError` where the steps do not tell the four apart.
    """
    rows = np.array([(1, s.num_decodes, s.num_prefill_tokens, s.num_context_tokens) for s in steps], dtype=float)
    seconds = np.array([s.seconds for s in steps])
    if len(steps) < 8 or np.linalg.matrix_rank(rows) < 4:
        raise ConfigError("steps", len(steps), "measure more steps, of different batch sizes and prompt lengths")
    kept = np.ones(len(steps), dtype=bool)
    while True:
        constants = _non_negative(rows[kept] / seconds[kept, None], np.ones(kept.sum()))
        fitted = rows @ constants
        undisturbed = kept & (seconds <= _DISTURBED * fitted)
        if undisturbed.sum() in (kept.sum(), 0):
            break
        kept = undisturbed
    true, fitted = seconds[kept], fitted[kept]
    quality = FitQuality(
        num_steps=len(steps),
        num_disturbed=int(len(steps) - kept.sum()),
        r_squared=round(1.0 - float(((true - fitted) ** 2).sum() / ((true - true.mean()) ** 2).sum()), 4),
        median_error=round(float(np.median(np.abs(fitted / true - 1.0))), 4),
        total_error=round(float(fitted.sum() / true.sum() - 1.0), 4),
    )
    a, b, c, d = (float(value) for value in constants)
    return (a, b, c, d), quality


def _non_negative(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Least squares in which what would be negative is left out, the most negative first."""
    kept = list(range(rows.shape[1]))
    constants = np.zeros(rows.shape[1])
    while kept:
        solution = np.linalg.lstsq(rows[:, kept], targets, rcond=None)[0]
        if solution.min() >= 0.0:
            constants[kept] = solution
            break
        del kept[int(solution.argmin())]
    return constants


def shipped_names() -> list[str]:
    """Cost models that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read_cost_model(name: str) -> CostModel:
    """A shipped cost model by its name, or one from a file."""
    path = SHIPPED / f"{name}.json" if name in shipped_names() else Path(name)
    remedy = f"give a file, or one of {', '.join(shipped_names())}"
    try:
        return msgspec.json.decode(path.read_bytes(), type=CostModel)
    except OSError as error:
        raise ConfigError("cost_model", name, f"{remedy} ({error.strerror})") from None
    except msgspec.DecodeError as error:
        raise ConfigError("cost_model", name, f"{remedy} ({error})") from None


def write_cost_model(path: Path, model: CostModel) -> None:
    """As readable JSON."""
    path.write_text(json.dumps(msgspec.to_builtins(model), indent=2) + "\n", encoding="utf-8")
