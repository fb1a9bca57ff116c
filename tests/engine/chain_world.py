"""An engine small enough to compute by hand: blocks of 2 tokens, the chain executor, and what each client has read."""

from typing import Any

from engine.chain_executor import ChainExecutor, next_chain_token
from engine.config import Batching, EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.request import FinishReason, GenerateRequest, SamplingParams, TokenChunk
from engine.scheduler import Scheduler
from engine.step import StepPlan, StepResult

VOCAB_SIZE = 13
BLOCK_SIZE = 2
MAX_STEPS = 20_000


def engine_info(
    num_blocks: int = 32, max_num_seqs: int = 4, eos: tuple[int, ...] = (), max_steps_in_flight: int = 1
) -> EngineInfo:
    return EngineInfo(
        model_path="nowhere",
        architecture="Chain",
        weights_revision="r0",
        dtype="float32",
        device="cpu",
        vocab_size=VOCAB_SIZE,
        max_model_len=512,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_steps_in_flight=max_steps_in_flight,
        eos_token_ids=eos,
    )


def generate(request_id: str, prompt: list[int], max_tokens: int = 3, **fields: Any) -> GenerateRequest:
    """A request; `fields` are those of `SamplingParams` or of `GenerateRequest`."""
    sampling_fields = {key: fields.pop(key) for key in list(fields) if key in SamplingParams.__struct_fields__}
    sampling = SamplingParams(max_tokens=max_tokens, seed=0, **sampling_fields)
    return GenerateRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling, **fields)


def chain_output(request: GenerateRequest, eos: tuple[int, ...] = ()) -> tuple[list[int], FinishReason]:
    """The whole answer to a request and why it ends, computed without any engine."""
    sampling = request.sampling
    ending = (() if sampling.ignore_eos else eos) + sampling.stop_token_ids
    tokens = list(request.prompt_token_ids)
    output: list[int] = []
    while len(output) < sampling.max_tokens:
        masked = ending if len(output) < sampling.min_tokens else ()
        output.append(next_chain_token(tokens, VOCAB_SIZE, masked))
        tokens.append(output[-1])
        if output[-1] in ending:
            return output, FinishReason.STOP
    return output, FinishReason.LENGTH


class ChainWorld:
    """One engine, stepped by hand at times given by hand; every step is checked."""

    def __init__(self, info: EngineInfo | None = None, **settings: Any) -> None:
        self.info = info or engine_info()
        self.config = EngineConfig(**({"block_size": BLOCK_SIZE, "check_invariants": True} | settings))
        self.scheduler = Scheduler(self.config, self.info)
        self.executor = ChainExecutor(VOCAB_SIZE, self.info.num_blocks, BLOCK_SIZE)
        self.plans: list[StepPlan] = []
        self.under_way: list[StepPlan] = []
        self.core = EngineCore(self.scheduler, self)
        self.chunks: dict[str, list[TokenChunk]] = {}
        self.read: dict[str, list[int]] = {}  #: output tokens, those of earlier attempts included
        self.finish: dict[str, FinishReason] = {}

    # The world is the core's executor, so that it sees each plan.

    def submit(self, plan: StepPlan) -> None:
        """As pipeline stages do, it takes plans that need no token still to be sampled."""
        self.plans.append(plan)
        ids = {item.sequence_id for item in plan.scheduled}
        for other in self.under_way:
            sampling = {item.sequence_id for item in other.scheduled if item.samples}
            assert not ids & sampling, "scheduled while its next token is being sampled"
            assert not {new.sequence_id for new in plan.new_sequences} & {item.sequence_id for item in other.scheduled}
        self.under_way.append(plan)
        assert len(self.under_way) <= self.info.max_steps_in_flight

    def collect(self) -> StepResult:
        return self.execute(self.under_way.pop(0))

    def execute(self, plan: StepPlan) -> StepResult:
        return self.executor.execute(plan)

    def close(self) -> None:
        self.executor.close()

    def add(self, request: GenerateRequest, now: float = 0.0) -> None:
        self.take(self.scheduler.add(request, now))
        self.read[request.request_id] = list(request.output_token_ids)
        self.chunks[request.request_id] = []
        self.finish.pop(request.request_id, None)
        self.scheduler.check_invariants()

    def abort(self, request_id: str) -> None:
        self.take(self.scheduler.abort(request_id))
        self.scheduler.check_invariants()

    def take(self, chunks: list[TokenChunk]) -> None:
        """Read as a client does: indices without gaps, nothing after the end."""
        for chunk in chunks:
            assert chunk.request_id not in self.finish, "a token after the end"
            assert chunk.index == len(self.read[chunk.request_id]), "a token is missing or doubled"
            self.read[chunk.request_id] += chunk.token_ids
            self.chunks[chunk.request_id].append(chunk)
            if chunk.finish is not None:
                self.finish[chunk.request_id] = chunk.finish

    def step(self, now: float = 0.0) -> StepPlan | None:
        """One step; its plan, or None if there was nothing to compute."""
        chunks = self.core.step(now)
        self.scheduler.check_invariants()
        if chunks is None:
            return None
        self.take(chunks)
        plan = self.plans[-1]
        assert plan.num_tokens <= self.config.max_batched_tokens
        return plan

    def run(self, now: float = 0.0) -> int:
        """Step until nothing is left to compute; how many steps that took."""
        for num_steps in range(MAX_STEPS):
            if self.step(now) is None:
                return num_steps
        raise AssertionError(f"not done after {MAX_STEPS} steps")

    def assert_idle(self) -> None:
        """Nothing is held any more."""
        load = self.scheduler.load()
        assert (load.num_running, load.num_waiting, load.queued_tokens, load.remaining_tokens) == (0, 0, 0, 0)
        assert (load.free_slots, load.free_blocks) == (self.info.max_num_seqs, self.info.num_blocks)


def static(batch_size: int, timeout_s: float = 1.0) -> dict[str, Any]:
    return {"batching": Batching.STATIC, "batch_size": batch_size, "batch_timeout_s": timeout_s}


def dynamic(batch_size: int, timeout_s: float = 1.0) -> dict[str, Any]:
    return {"batching": Batching.DYNAMIC, "batch_size": batch_size, "batch_timeout_s": timeout_s}
