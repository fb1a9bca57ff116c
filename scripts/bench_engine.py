"""Tokens per second and latencies of one engine, in this process, without Ray and without HTTP.

    python -m scripts.bench engine MODEL                            continuous batching
    python -m scripts.bench engine MODEL --compare static           and static batching, same kernels, same requests
    python -m scripts.bench engine MODEL --against-generate         and transformers' padded generate()
    python -m scripts.bench engine MODEL --rate 4 --cost-model FILE fit a cost model for `manta simulate` to the steps

Prompts are random token ids, lengths are drawn evenly from their ranges (`--output-skew` makes long outputs rare, as
in real traffic), and every request generates exactly the number of tokens drawn for it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from deployments.commands.counting_bar import counting_bar
from deployments.simulation import workload as trace
from deployments.simulation.cost_model import CostModel, MeasuredStep, contents, fit_steps, write_cost_model
from deployments.simulation.workload import write_trace
from engine.config import Batching, DType, EngineConfig, EngineInfo
from engine.core import EngineCore, InlineExecutor, StepExecutor
from engine.openmp import wait_briefly
from engine.request import GenerateRequest, SamplingParams
from engine.scheduler import Scheduler
from engine.step import StepPlan, StepResult

_FIRST_ORDINARY_ID = 10  #: below lie special tokens in most vocabularies
console = Console(stderr=True)


@dataclass(frozen=True)
class Arrival:
    """A request and when it comes, in seconds after the start."""

    at: float
    request: GenerateRequest


@dataclass
class Measured:
    """What one run gave. Latencies in milliseconds; ITL is the time between two tokens of one request."""

    name: str
    seconds: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)
    steps: int = 0
    preemptions: int = 0
    cached_tokens: int = 0

    def summary(self) -> dict[str, Any]:
        """The figures worth keeping, rounded."""
        values = {key: value for key, value in asdict(self).items() if not key.endswith("_ms")}
        values["seconds"] = round(self.seconds, 3)
        values["output_tokens_per_s"] = round(self.output_tokens / self.seconds, 1)
        values["total_tokens_per_s"] = round((self.output_tokens + self.prompt_tokens) / self.seconds, 1)
        for name, samples in (("ttft_ms", self.ttft_ms), ("itl_ms", self.itl_ms)):
            for percentile in (50, 99):
                values[f"{name}_p{percentile}"] = (
                    round(float(np.percentile(samples, percentile)), 1) if samples else None
                )
        return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m scripts.bench engine`."""
    parser.add_argument("model", help="a Hugging Face folder or hub id")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-len", type=length_range, default=(32, 256), metavar="A:B")
    parser.add_argument("--output-len", type=length_range, default=(16, 256), metavar="A:B")
    parser.add_argument(
        "--output-skew", type=float, default=1.0, help="1: even; n: lengths follow A + (B - A) * u^n, long ones rare"
    )
    parser.add_argument("--prefix-len", type=int, default=0, help="tokens all prompts begin with")
    parser.add_argument("--rate", type=float, help="requests per second (Poisson); default: all at once")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--max-batched-tokens", type=int, default=2048)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--kv-cache-tokens", type=int)
    parser.add_argument("--dtype", type=DType, choices=list(DType), default=DType.AUTO)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batching", type=Batching, choices=list(Batching), default=Batching.CONTINUOUS)
    parser.add_argument("--batch-size", type=int, help="of static and dynamic batching (default: --max-num-seqs)")
    parser.add_argument("--compare", type=Batching, choices=list(Batching), action="append", default=[])
    parser.add_argument("--against-generate", action="store_true", help="also transformers' padded generate()")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, one line a run")
    parser.add_argument(
        "--steps", type=Path, metavar="FILE", help="write each step's contents and seconds, a line each"
    )
    parser.add_argument(
        "--write-trace", type=Path, metavar="FILE", help="write the load as a trace for `manta simulate`"
    )
    parser.add_argument("--cost-model", type=Path, metavar="FILE", help="fit a cost model to the steps and write it")


def length_range(text: str) -> tuple[int, int]:
    """`A:B` or `A` as a closed range."""
    first, _, last = text.partition(":")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"{text}: give A:B with 1 <= A <= B")
    return low, high


def run(args: argparse.Namespace) -> int:
    """Measure what the arguments ask for and print it."""
    config = EngineConfig(
        dtype=args.dtype,
        device=args.device,
        max_num_seqs=args.max_num_seqs,
        max_batched_tokens=args.max_batched_tokens,
        block_size=args.block_size,
        kv_cache_tokens=args.kv_cache_tokens,
        max_model_len=args.prefix_len + args.prompt_len[1] + args.output_len[1],
        batching=args.batching,
        batch_size=args.batch_size or args.max_num_seqs,
        batch_timeout_s=0.0,
        threads=args.threads,
    )
    core, info = _start(args.model, config)
    arrivals = draw_arrivals(args, info.vocab_size)
    if args.write_trace:
        write_trace(args.write_trace, _as_trace(arrivals, args.prefix_len))
    results = []
    for batching in dict.fromkeys([args.batching, *args.compare]):
        recorder = StepRecorder(core.executor)
        scheduler = Scheduler(msgspec.structs.replace(config, batching=batching), info)
        results.append(measure(EngineCore(scheduler, recorder), arrivals, batching.value))
        _forget_everything(core.executor, len(arrivals))
        if batching is args.batching:
            _keep_steps(args, recorder.steps, config, info)
    if args.against_generate:
        results.append(measure_generate(info, arrivals, config))
    _print(args, info, results)
    return 0


def _start(model: str, config: EngineConfig) -> tuple[EngineCore, EngineInfo]:
    wait_briefly()
    from engine.startup import start_engine  # imports torch: `--help` need not

    with console.status("starting") as status:
        return start_engine(model, config, progress=lambda phase, _: status.update(phase.replace("_", " ")))


class StepRecorder(InlineExecutor):
    """An executor that notes what each plan held and how long the inner executor took for it."""

    def __init__(self, executor: StepExecutor) -> None:
        self.steps: list[MeasuredStep] = []
        self._executor = executor

    def execute(self, plan: StepPlan) -> StepResult:
        started = time.perf_counter()
        result = self._executor.execute(plan)
        self.steps.append(MeasuredStep(*contents(plan), time.perf_counter() - started))
        return result

    def close(self) -> None:
        self._executor.close()


def _keep_steps(args: argparse.Namespace, steps: list[MeasuredStep], config: EngineConfig, info: EngineInfo) -> None:
    """Write the steps and the cost model fitted to them, as asked."""
    if args.steps:
        args.steps.write_bytes(b"".join(msgspec.json.encode(step) + b"\n" for step in steps))
    if not args.cost_model:
        return
    constants, quality = fit_steps(steps)
    model = CostModel(
        name=args.cost_model.stem,
        source=f"{len(steps)} steps of {Path(args.model).name}, {info.dtype} on {info.device}",
        is_measured=True,
        **dict(zip(("step_s", "decode_s", "prefill_s", "context_s"), constants, strict=True)),
        max_num_seqs=info.max_num_seqs,
        max_batched_tokens=config.max_batched_tokens,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        max_model_len=info.max_model_len,
        fit=quality,
    )
    write_cost_model(args.cost_model, model)
    console.print(f"{args.cost_model}: {quality}")


def draw_arrivals(args: argparse.Namespace, vocab_size: int) -> list[Arrival]:
    """The workload: the same for the same seed, whatever engine runs it."""
    rng = np.random.default_rng(args.seed)
    prefix = rng.integers(_FIRST_ORDINARY_ID, vocab_size, args.prefix_len).tolist()
    arrivals, at = [], 0.0
    for index in range(args.requests):
        prompt_len = int(rng.integers(args.prompt_len[0], args.prompt_len[1] + 1))
        low, high = args.output_len
        output_len = min(high, int(low + (high + 1 - low) * rng.random() ** args.output_skew))
        prompt = prefix + rng.integers(_FIRST_ORDINARY_ID, vocab_size, prompt_len).tolist()
        sampling = SamplingParams(
            max_tokens=output_len, seed=args.seed + index, temperature=args.temperature, ignore_eos=True
        )
        arrivals.append(Arrival(at, GenerateRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling)))
        at += rng.exponential(1.0 / args.rate) if args.rate else 0.0
    return arrivals


def _as_trace(arrivals: list[Arrival], prefix_len: int) -> Iterator[trace.Arrival]:
    group = 1 if prefix_len else 0
    for arrival in arrivals:
        prompt, sampling = arrival.request.prompt_token_ids, arrival.request.sampling
        yield trace.Arrival(arrival.at, len(prompt), sampling.max_tokens, group=group, prefix_tokens=prefix_len)


def measure(core: EngineCore, arrivals: list[Arrival], name: str) -> Measured:
    """Run all requests through the engine, each added when its time has come."""
    result = Measured(name, prompt_tokens=sum(len(a.request.prompt_token_ids) for a in arrivals))
    due = {a.request.request_id: a.at for a in arrivals}
    last: dict[str, float] = {}
    num_added = num_finished = 0
    with counting_bar(console) as bar:
        task = bar.add_task(name, total=len(arrivals))
        started = time.perf_counter()
        while num_finished < len(arrivals):
            now = time.perf_counter() - started
            while num_added < len(arrivals) and arrivals[num_added].at <= now:
                core.scheduler.add(arrivals[num_added].request, now)
                num_added += 1
            chunks = core.step(now)
            now = time.perf_counter() - started
            for chunk in chunks or []:
                before = last.get(chunk.request_id)
                if before is None:
                    result.ttft_ms.append((now - due[chunk.request_id]) * 1e3)
                else:
                    result.itl_ms.append((now - before) * 1e3)
                last[chunk.request_id] = now
                num_finished += chunk.finish is not None
            if chunks is None:
                time.sleep(0.0005)
            elif chunks:
                bar.update(task, completed=num_finished)
        result.seconds = time.perf_counter() - started
    load = core.scheduler.load()
    result.steps, result.preemptions, result.cached_tokens = load.step, load.num_preemptions, load.num_cached_tokens
    result.output_tokens = load.num_output_tokens
    return result


def _forget_everything(executor: StepExecutor, num_requests: int) -> None:
    """The next scheduler numbers its sequences from 1 again."""
    executor.execute(StepPlan(step=0, dropped_ids=list(range(1, num_requests + 1)), new_sequences=[], scheduled=[]))


def measure_generate(info: EngineInfo, arrivals: list[Arrival], config: EngineConfig) -> Measured:
    """Batches in order of arrival, padded on the left, each as long as its longest output. Ignores arrival times."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(info.model_path, dtype=getattr(torch, info.dtype)).to(info.device)
    model.eval()
    result = Measured("generate", prompt_tokens=sum(len(a.request.prompt_token_ids) for a in arrivals))
    requests = [a.request for a in arrivals]
    with counting_bar(console) as bar:
        task = bar.add_task("generate", total=len(requests))
        started = time.perf_counter()
        for first in range(0, len(requests), config.batch_size):
            batch = requests[first : first + config.batch_size]
            longest = max(len(r.prompt_token_ids) for r in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, request in enumerate(batch):
                ids[row, longest - len(request.prompt_token_ids) :] = torch.tensor(request.prompt_token_ids)
                mask[row, longest - len(request.prompt_token_ids) :] = 1
            model.generate(
                ids.to(info.device),
                attention_mask=mask.to(info.device),
                max_new_tokens=max(r.sampling.max_tokens for r in batch),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            result.output_tokens += sum(r.sampling.max_tokens for r in batch)
            bar.update(task, advance=len(batch))
        result.seconds = time.perf_counter() - started
    return result


def _print(args: argparse.Namespace, info: EngineInfo, results: list[Measured]) -> None:
    summaries = [result.summary() for result in results]
    if args.json:
        for summary in summaries:
            print(json.dumps({"model": args.model, "device": info.device, "dtype": info.dtype, **summary}))
        return
    table = Table(title=f"{args.model} ({info.dtype} on {info.device}), {args.requests} requests")
    table.add_column("")
    for result in results:
        table.add_column(result.name, justify="right")
    for key in summaries[0]:
        if key != "name":
            table.add_row(key, *("-" if summary[key] is None else f"{summary[key]:,}" for summary in summaries))
    first = summaries[0]["output_tokens_per_s"]
    for result, summary in zip(results[1:], summaries[1:], strict=True):
        table.add_row(
            f"{results[0].name} / {result.name}",
            *[""] * results.index(result),
            f"{first / summary['output_tokens_per_s']:.2f} x",
        )
    Console().print(table)
