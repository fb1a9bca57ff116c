"""How fast an engine computes prompts and decodes with one or several steps in flight, and how idle its ranks are."""

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import psutil

from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.request import GenerateRequest, SamplingParams
from engine.scheduler import Scheduler
from engine.step import StepPlan


def numbered_requests(count: int, num_prompt_tokens: int, num_output_tokens: int) -> list[GenerateRequest]:
    """Requests without a common prefix."""
    sampling = SamplingParams(max_tokens=num_output_tokens, seed=0, temperature=0.0, ignore_eos=True)
    prompts = ([(7 * index + 3 * i) % 900 + 3 for i in range(num_prompt_tokens)] for index in range(count))
    return [
        GenerateRequest(request_id=f"{count}-{index}", prompt_token_ids=prompt, sampling=sampling)
        for index, prompt in enumerate(prompts)
    ]


def with_steps_in_flight(core: EngineCore, config: EngineConfig, info: EngineInfo, steps: int) -> EngineCore:
    """The same idle executor under a new scheduler, with at most so many steps under way."""
    num_known = core.scheduler.load().num_accepted
    core.executor.execute(StepPlan(0, list(range(1, num_known + 1)), [], []))
    core.scheduler = Scheduler(config, msgspec.structs.replace(info, max_steps_in_flight=steps))
    return core


class Phase(NamedTuple):
    """A stretch of work: tokens a second, share of the time in which each rank did not compute, the driver's own."""

    rate: float
    idle: list[float]
    control_us: float  #: CPU time of the driver's process for one step

    @property
    def text(self) -> str:
        """For people."""
        idle = ", ".join(f"{share:.0%}" for share in self.idle)
        ranks = f" (idle {idle}; driver {self.control_us:.0f} us a step)" if idle else ""
        return f"{self.rate:8.1f} tokens/s{ranks}"


class _Watch:
    """Times one phase."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._ranks = [psutil.Process(pid) for pid in pids]
        self._computed = self._computed_s()
        self._control_s = time.process_time()
        self._started = time.perf_counter()

    def phase(self, num_tokens: int, num_steps: int) -> Phase:
        """From its making to now."""
        seconds = time.perf_counter() - self._started
        control_s = time.process_time() - self._control_s
        busy = [after - before for before, after in zip(self._computed, self._computed_s(), strict=True)]
        idle = [max(0.0, 1.0 - each / seconds) for each in busy]
        return Phase(num_tokens / seconds, idle, control_s / num_steps * 1e6)

    def _computed_s(self) -> list[float]:
        times = [rank.cpu_times() for rank in self._ranks]
        return [each.user + each.system for each in times]


def phases(core: EngineCore, count: int, args: argparse.Namespace, pids: Sequence[int] = ()) -> tuple[Phase, Phase]:
    """The prompts, until each sequence has its first token, and decoding, until the first one ends."""
    for request in numbered_requests(count, args.context, args.tokens):
        core.scheduler.add(request, 0.0)
    started, num_tokens, num_steps = set[str](), 0, 0
    prompts: Phase | None = None
    watch = _Watch(pids)
    decode: Phase | None = None
    while (chunks := core.step(0.0)) is not None:
        num_tokens, num_steps = num_tokens + len(chunks), num_steps + 1
        started |= {chunk.request_id for chunk in chunks}
        if prompts is None and len(started) == count:
            prompts = watch.phase(count * args.context, num_steps)
            num_tokens, num_steps, watch = 0, 0, _Watch(pids)
        elif prompts is not None and decode is None and any(chunk.finish for chunk in chunks):
            decode = watch.phase(num_tokens, num_steps)
    if prompts is None or decode is None:
        raise ValueError(f"--tokens {args.tokens}: the first of {count} sequences ends before the last begins")
    return prompts, decode


def in_turn(
    core: EngineCore, config: EngineConfig, info: EngineInfo, count: int, args: argparse.Namespace
) -> dict[int, list[tuple[Phase, Phase]]]:
    """By steps in flight, one and as many as there may be: the phases of all rounds."""
    measured: dict[int, list[tuple[Phase, Phase]]] = {steps: [] for steps in sorted({1, info.max_steps_in_flight})}
    for _ in range(args.rounds):
        for steps, rounds in measured.items():
            core = with_steps_in_flight(core, config, info, steps)
            rounds.append(phases(core, count, args, info.rank_pids))
    return measured


def best_of(measured: list[tuple[Phase, Phase]]) -> str:
    """The fastest prompts and the fastest decoding of several rounds."""
    prompts, decode = (max(rounds, key=lambda phase: phase.rate) for rounds in zip(*measured, strict=True))
    return f"prompts {prompts.text}, decode {decode.text}"
