"""`manta doctor`: looks at this machine and says what to do; changes nothing but the kernel cache.

Reading the machine is in `deployments.commands.doctor_readings`; here every reading is judged. A failure means that
serving will not work, a warning that it will work worse than it could.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.table import Table

from deployments.commands import doctor_readings as readings
from deployments.commands.doctor_readings import (
    GIB,
    GpuReading,
    KernelReading,
    MemoryReading,
    PortReading,
    TorchReading,
)


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the report; `remedy` is what the reader should do, empty when all is well."""

    check: str
    status: Status
    detail: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `manta doctor`."""
    parser.add_argument("--host", default="127.0.0.1", help="address that will be served on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port that will be served on (default: 8000)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 when something fails, else 0."""
    console = Console()
    if args.json:
        findings = examine(args.host, args.port)
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        with console.status("looking at this machine"):
            findings = examine(args.host, args.port)
        console.print(render(findings))
        console.print(conclusion(findings))
    return int(any(finding.status is Status.FAILED for finding in findings))


def examine(host: str, port: int) -> list[Finding]:
    """Every check, in the order in which a person would mend things."""
    torch = readings.read_torch()
    return [
        judge_python(readings.read_python()),
        *judge_packages(readings.read_pins(), readings.read_installed()),
        judge_torch(torch),
        judge_cores(readings.read_cores()),
        judge_memory(readings.read_memory()),
        judge_compiler(readings.read_compiler()),
        judge_kernels(readings.read_kernels()),
        judge_gpu(readings.read_gpu(torch)),
        judge_port(readings.read_port(host, port)),
        judge_disk(readings.read_disk()),
        judge_shared_memory(readings.read_shared_memory()),
        judge_open_files(readings.read_open_files()),
    ]


def judge_python(version: tuple[int, int, int]) -> Finding:
    """Manta needs 3.11 or newer."""
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding("Python", Status.FAILED, text, "install Python 3.11 or newer, then run scripts/setup")
    return Finding("Python", Status.OK, text)


def judge_packages(pins: dict[str, str], installed: dict[str, str | None]) -> list[Finding]:
    """One row for each of torch, ray and transformers, one for all other packages."""
    remedy = "run scripts/setup; it installs the pinned versions"
    if not pins:
        return [Finding("packages", Status.FAILED, "manta-serve is not installed here", remedy)]
    differing = {name: version for name, version in installed.items() if plain_version(version) != pins[name]}
    findings = []
    for name in ("torch", "ray", "transformers"):
        found = installed.get(name) or "missing"
        if name not in differing:
            findings.append(Finding(name, Status.OK, found))
        else:
            status = Status.WARNING if installed.get(name) else Status.FAILED
            findings.append(Finding(name, status, f"{found}, pinned is {pins[name]}", remedy))
    others = {name: version for name, version in differing.items() if name not in ("torch", "ray", "transformers")}
    if not others:
        return [*findings, Finding("other packages", Status.OK, f"{len(pins) - 3} as pinned")]
    detail = ", ".join(f"{name} {version or 'missing'} (pinned {pins[name]})" for name, version in others.items())
    status = Status.FAILED if None in others.values() else Status.WARNING
    return [*findings, Finding("other packages", status, detail, remedy)]


def plain_version(version: str | None) -> str | None:
    """A version without its local part: 2.13.0+cpu is 2.13.0."""
    return None if version is None else version.partition("+")[0]


def judge_torch(torch: TorchReading) -> Finding:
    """Torch is there and can be imported."""
    if torch.error:
        return Finding("torch import", Status.FAILED, torch.error, "run scripts/setup to install torch again")
    return Finding("torch import", Status.OK, f"{torch.import_s:.1f} s")


def judge_cores(cores: readings.CoreReading) -> Finding:
    """How many cores compute, and whether they multiply bf16 directly."""
    limit = "" if cores.quota is None else f" (container limit {cores.quota:g})"
    formats = "bfloat16 is native" if cores.native_bf16 else "no native bfloat16: float32 is the faster dtype"
    detail = f"{cores.num_cores} x {cores.model}{limit}; {formats}"
    if cores.num_cores < 2:
        return Finding("CPU", Status.WARNING, detail, "one core serves one replica: start with --replicas 1")
    return Finding("CPU", Status.OK, detail)


def judge_memory(memory: MemoryReading) -> Finding:
    """Ray, a gateway, a router and two replicas of the demo model take about 3 GiB."""
    limit = "" if memory.limit is None else f" (container limit {memory.limit / GIB:.1f} GiB)"
    detail = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB{limit}"
    if memory.available < 2 * GIB:
        return Finding("memory", Status.FAILED, detail, "free memory: Ray and one small replica need 2 GiB")
    if memory.available < 4 * GIB:
        return Finding("memory", Status.WARNING, detail, "serve one small replica: --replicas 1")
    return Finding("memory", Status.OK, detail)


def judge_compiler(compiler: str | None) -> Finding:
    """A C++ compiler makes the CPU kernels."""
    if compiler is None:
        remedy = "install g++ (Debian: apt-get install g++); without it torch's slower operations are used"
        return Finding("C++ compiler", Status.WARNING, "none found", remedy)
    return Finding("C++ compiler", Status.OK, compiler)


def judge_kernels(kernels: KernelReading) -> Finding:
    """The CPU kernels are compiled and load."""
    if kernels.error:
        remedy = "python -m engine.kernels.build shows all; until then torch's slower operations are used"
        return Finding("CPU kernels", Status.WARNING, kernels.error, remedy)
    return Finding("CPU kernels", Status.OK, f"{kernels.instructions}, {kernels.path}")


def judge_gpu(gpu: GpuReading) -> Finding:
    """No GPU is fine; a GPU that torch cannot use is not."""
    if gpu.devices:
        return Finding("GPU", Status.OK, ", ".join(gpu.devices))
    if gpu.driver:
        remedy = "install a torch build with CUDA that suits the driver; until then the CPU serves"
        return Finding("GPU", Status.WARNING, f"{gpu.driver}, but torch sees no CUDA device", remedy)
    return Finding("GPU", Status.OK, "none; the CPU serves")


def judge_port(port: PortReading) -> Finding:
    """The gateway can listen."""
    place = f"{port.host}:{port.port}"
    if port.error:
        owner = f" by {port.owner}" if port.owner else ""
        remedy = f"stop it or choose another port: manta serve --port {port.port + 1}"
        return Finding("port", Status.WARNING, f"{place} cannot be used{owner}: {port.error}", remedy)
    return Finding("port", Status.OK, f"{place} is free")


def judge_disk(disk: readings.DiskReading) -> Finding:
    """Ray keeps its logs in the temporary folder and stops working when that disk is 95 % full."""
    used = 1 - disk.free / disk.total
    detail = f"{disk.free / GIB:.1f} GiB free in {disk.folder} ({used:.0%} used)"
    if used >= 0.95:
        return Finding("disk", Status.FAILED, detail, f"free space in {disk.folder}: Ray refuses a disk 95 % full")
    if disk.free < 2 * GIB:
        return Finding("disk", Status.WARNING, detail, f"free space in {disk.folder} for Ray's logs and checkpoints")
    return Finding("disk", Status.OK, detail)


def judge_shared_memory(disk: readings.DiskReading | None) -> Finding:
    """Ray puts its object store there; Manta itself moves tokens over sockets and needs little of it."""
    if disk is None:
        return Finding("shared memory", Status.OK, "no /dev/shm here; Ray uses files")
    detail = f"{disk.free / GIB:.1f} GiB free in {disk.folder}"
    if disk.free < GIB // 2:
        remedy = "in a container start it with --shm-size=1g; Ray falls back to slower files"
        return Finding("shared memory", Status.WARNING, detail, remedy)
    return Finding("shared memory", Status.OK, detail)


def judge_open_files(limit: int) -> Finding:
    """Every client connection is an open file of the gateway."""
    if limit < 4096:
        return Finding("open files", Status.WARNING, f"limit {limit}", "raise it: ulimit -n 65536")
    return Finding("open files", Status.OK, f"limit {limit}")


def render(findings: Iterable[Finding]) -> Table:
    """The report as a table; remedies stand under what they mend."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = _STYLES[finding.status]
        table.add_row(f"[{style}]{finding.status}[/]", finding.check, finding.detail)
        if finding.remedy:
            table.add_row("", "", f"[{style}]-> {finding.remedy}[/]")
    return table


def conclusion(findings: Iterable[Finding]) -> str:
    """The last line."""
    statuses = [finding.status for finding in findings]
    failed, warned = statuses.count(Status.FAILED), statuses.count(Status.WARNING)
    if failed:
        return f"[bold red]Not ready:[/] {failed} failed, {warned} with a warning."
    if warned:
        return f"[yellow]Ready,[/] {warned} with a warning. Serve with: manta serve"
    return "[green]Ready.[/] Serve with: manta serve"
