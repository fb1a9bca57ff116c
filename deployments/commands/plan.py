"""`manta plan`: which tensor_parallel x pipeline_parallel suits a model on given devices, with the numbers and why."""

import argparse
import json
import re
from dataclasses import asdict, replace
from typing import Any

import yaml
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from cluster.config import DEMO_MODEL, ModelConfig
from engine.config import DType, EngineConfig
from engine.errors import ConfigError, UnsupportedArchitecture
from parallel.devices import DEVICES, Device, host_device, size_text
from parallel.part_sizes import ModelSizes
from parallel.plan import Candidate, Hosts, Load, explain, grid_sizes, plan, without_beaten

_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "kb": 10**3, "mb": 10**6, "gb": 10**9,
          "tb": 10**12}  # fmt: skip
_CPU = "cpu"
_NODE_OF_GPUS = 8
_DEFAULTS = EngineConfig()
_SHORT_CONTEXT = 8192
_TABLE_WIDTH = 100  #: of the largest numbers, which must not be cut off; usual ones take 80
_MOST_SEQUENCES, _MOST_REPLICAS = 4096, 1024  #: as `engine.max_num_seqs` and `replicas` take them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default=DEMO_MODEL, metavar="MODEL",
        help="local directory or hub id; config.json is enough (default: the demo model)",
    )  # fmt: skip
    parser.add_argument("--gpu", choices=[*DEVICES, _CPU], help="device (default: cpu, the cores of this host)")
    parser.add_argument("--memory", type=amount, metavar="SIZE", help="of one device, in place of the data sheet's")
    parser.add_argument("--bandwidth", type=amount, metavar="SIZE", help="of its memory, likewise, e.g. 3.35TB")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", help="devices, or CPU ranks, of a node (default: 8, "
                        "with cpu 1)")  # fmt: skip
    parser.add_argument("--nodes", type=int, default=1, metavar="N")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="of a sequence, prompt and output (default: the "
                        f"model's limit, at most {_SHORT_CONTEXT})")  # fmt: skip
    parser.add_argument("--concurrency", type=int, default=_DEFAULTS.max_num_seqs, metavar="N", help="sequences "
                        "computed together (default: %(default)s)")  # fmt: skip
    parser.add_argument("--dtype", choices=[*DType], default=DType.AUTO, help="default: the checkpoint's own")
    parser.add_argument("--all", action="store_true", help="show also grids that one of as many ranks beats")
    parser.add_argument("--json", action="store_true", help="as JSON")


def amount(text: str) -> int:
    """Bytes, from a number with a unit."""
    match = re.fullmatch(r"([\d.]+)\s*([a-z]*)", text.lower().removesuffix("/s"))
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text}: write a number and a unit, as 80GiB or 3.35TB")
    return int(float(match[1]) * _UNITS[match[2]])


def run(args: argparse.Namespace) -> int:
    for name in ("nodes", "gpus_per_node", "context", "concurrency"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}", value, "give at least 1")
    if args.concurrency > _MOST_SEQUENCES:
        raise ConfigError("--concurrency", args.concurrency, f"one engine runs at most {_MOST_SEQUENCES} sequences")
    hosts = _hosts(args)
    console = Console(stderr=args.json)
    with console.status("measuring the model's parts"):
        model = _measure(args, hosts)
    load = _load(args, model)
    candidates = plan(model, hosts, load)
    if args.json:
        print(json.dumps(_as_json(model, hosts, load, candidates)))
    else:
        _show(console, args.model, model, hosts, load, candidates if args.all else without_beaten(candidates))
    return int(bool(candidates[0].refusal))


def _hosts(args: argparse.Namespace) -> Hosts:
    name = args.gpu or _CPU
    per_node = args.gpus_per_node or (1 if name == _CPU else _NODE_OF_GPUS)
    device = _host_of_ranks(per_node) if name == _CPU else DEVICES[name]
    changed = {"memory_bytes": args.memory, "bandwidth": args.bandwidth}
    return Hosts(replace(device, **{key: value for key, value in changed.items() if value}), per_node, args.nodes)


def _host_of_ranks(num_ranks: int) -> Device:
    from engine.device_choice import device_of  # imports torch
    from engine.kv_cache import free_memory

    return host_device(free_memory(device_of(_CPU)), num_ranks)


def _measure(args: argparse.Namespace, hosts: Hosts) -> ModelSizes:
    from engine.checkpoint import find_config, read_checkpoint, read_config_only  # these import torch
    from engine.device_choice import device_of
    from engine.model_loader import choose_dtype, model_config
    from engine.model_sizes import measure_model

    path = find_config(ModelConfig(model=args.model).location)
    has_weights = next(iter(path.glob("*.safetensors")), None) is not None
    checkpoint = read_checkpoint(path, args.model) if has_weights else read_config_only(path, args.model)
    device = device_of(_CPU if hosts.device.name == _CPU else "cuda")
    dtype = choose_dtype(DType(args.dtype), checkpoint, device)
    tensor_sizes, stage_counts = grid_sizes(hosts)
    config = model_config(checkpoint)
    model = measure_model(checkpoint, config, dtype, tensor_sizes=tensor_sizes, stage_counts=stage_counts)
    if not all(part.layers for part in model.parts.values()):
        raise UnsupportedArchitecture(args.model, f"the attention of {model.architecture} is not known to the planner")
    return model


def _load(args: argparse.Namespace, model: ModelSizes) -> Load:
    context = args.context or min(model.position_limit, _SHORT_CONTEXT)
    if context > model.position_limit:
        raise ConfigError("--context", context, f"the model holds {model.position_limit} tokens: give at most that")
    return Load(
        context=context,
        concurrency=args.concurrency,
        block_size=_DEFAULTS.block_size,
        batched_tokens=max(_DEFAULTS.max_batched_tokens, args.concurrency),
        kv_share=_DEFAULTS.kv_cache_memory,
    )


def config_lines(model: str, sizes: ModelSizes, hosts: Hosts, load: Load, best: Candidate) -> str:
    """The lines of a configuration that runs `best`."""
    num_sequences = min(best.concurrency, load.concurrency)
    settings: dict[str, Any] = {
        "model": model,
        "replicas": min(best.replicas, _MOST_REPLICAS),
        "tensor_parallel": best.tensor_parallel,
        "pipeline_parallel": best.pipeline_parallel,
        "engine": {
            "dtype": sizes.dtype,
            "max_model_len": load.context,
            "max_num_seqs": num_sequences,
        },
    }
    if load.batched_tokens != _DEFAULTS.max_batched_tokens:
        settings["engine"]["max_batched_tokens"] = load.batched_tokens
    if hosts.device.name == _CPU:  # where the engine by itself takes no more than 4 GiB
        settings["engine"]["kv_cache_tokens"] = num_sequences * load.blocks_per_sequence * load.block_size
    return yaml.safe_dump(settings, sort_keys=False)


def _as_json(model: ModelSizes, hosts: Hosts, load: Load, candidates: list[Candidate]) -> dict[str, object]:
    described = {"name": model.name, "architecture": model.architecture, "dtype": model.dtype,
                 "num_parameters": model.num_parameters}  # fmt: skip
    return {
        "model": described,
        "hosts": asdict(hosts),
        "load": asdict(load),
        "why": explain(candidates, load),
        "candidates": [asdict(candidate) for candidate in candidates],
    }


def _show(
    console: Console, name: str, model: ModelSizes, hosts: Hosts, load: Load, candidates: list[Candidate]
) -> None:
    device = hosts.device
    console.print(
        f"{name} ({model.architecture}): {_count(model.num_parameters)} parameters in {model.dtype}\n"
        f"{hosts.nodes} x {hosts.devices_per_node} {device.name}: {size_text(device.memory_bytes)}, "
        f"{device.bandwidth / 1e9:,.0f} GB/s, {device.flops / 1e12:.3g} TFLOP/s each ({device.source})"
    )
    Console(width=max(console.width, _TABLE_WIDTH)).print(_table(candidates, load))
    best = candidates[0]
    console.print(explain(candidates, load))
    if best.memory is not None and not best.refusal:
        memory = best.memory
        console.print(
            f"A rank holds {size_text(memory.weights)} of weights; {size_text(memory.activations)} are left to "
            f"activations and {size_text(memory.overhead)} to the process and its device (both assumed), and "
            f"{size_text(memory.kv_cache)} become {best.kv_blocks:,} KV blocks. Tokens/s are what memory bandwidth, "
            "arithmetic and the sums between ranks allow at most."
        )
        console.print(f"\n{config_lines(name, model, hosts, load, best)}", markup=False, highlight=False)


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _table(candidates: list[Candidate], load: Load) -> Table:
    table = Table(box=HORIZONTALS, show_edge=False, pad_edge=False, padding=0)  # fits in 80 columns
    for heading in ("tp x pp", "nodes", "replicas", "weights", "KV\ntokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"sequences\nof {load.context:,}", justify="right", no_wrap=True)
    for heading in ("tokens/s\nof one", "tokens/s\nof all", "prompt\ntokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in candidates:
        grid = f"{each.tensor_parallel} x {each.pipeline_parallel}"
        if not each.refusal:
            weights = size_text(max(each.stage_weights))
            table.add_row(
                grid, str(each.nodes), str(each.replicas), weights, f"{each.kv_tokens:,}", f"{each.concurrency:,}",
                f"{each.decode_alone:,.0f}", f"{each.decode_full:,.0f}", f"{each.prefill:,.0f}",
            )  # fmt: skip
    refused = "\n".join(
        f"{each.tensor_parallel} x {each.pipeline_parallel}: {each.refusal}" for each in candidates if each.refusal
    )
    table.caption, table.caption_justify = refused or None, "left"
    return table
