"""How fast an engine computes prompts and decodes with one or several steps in flight, and how idle its ranks are."""

import argparse
import time
from collections.abc import Sequence

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


class _Rates:
    """Tokens a second from one moment to another, and the share of that time in which each rank did not compute."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._ranks = [psutil.Process(pid) for pid in pids]
        self._computed = self._computed_s()
        self._started = time.perf_counter()

    def text(self, num_tokens: int) -> str:
        """Since the start."""
        seconds = time.perf_counter() - self._started
        busy = [after - before for before, after in zip(self._computed, self._computed_s(), strict=True)]
        idle = ", ".join(f"{max(0.0, 1 - each / seconds):.0%}" for each in busy)
        return f"{num_tokens / seconds:8.1f} tokens/s" + (f" (idle {idle})" if idle else "")

    def _computed_s(self) -> list[float]:
        times = [rank.cpu_times() for rank in self._ranks]
        return [each.user + each.system for each in times]


def rates(core: EngineCore, count: int, args: argparse.Namespace, pids: Sequence[int] = ()) -> str:
    """Of the prompts, until each sequence has its first token, then of decoding, until the first one ends."""
    for request in numbered_requests(count, args.context, args.tokens):
        core.scheduler.add(request, 0.0)
    num_tokens, started, prompts, decode = 0, set[str](), "", ""
    measured = _Rates(pids)
    while (chunks := core.step(0.0)) is not None:
        started |= {chunk.request_id for chunk in chunks}
        num_tokens += len(chunks)
        if not prompts and len(started) == count:
            prompts, num_tokens, measured = measured.text(count * args.context), 0, _Rates(pids)
        elif not decode and any(chunk.finish for chunk in chunks):
            decode = measured.text(num_tokens)
    return f"prompts {prompts}, decode {decode}"
