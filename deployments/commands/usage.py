"""`manta usage`: sums what the usage ledger holds, or exports its rows."""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from cluster.calls.usage import KEYS, NUMBERS, UsageRow, sum_usage
from deployments.commands.counting_bar import counting_bar
from deployments.usage_ledger import read_usage
from engine.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", nargs="+", help="folder of a ledger (ledger.dir); several, of several hosts")
    parser.add_argument("--by", default="tenant,model", help=f"sum by these, of {', '.join(KEYS)} (tenant,model)")
    parser.add_argument("--rows", action="store_true", help="every call instead of sums")
    parser.add_argument("--tenant", help="only this tenant's calls")
    parser.add_argument("--since", default="", metavar="DAY", help="only calls that ended then or later, as 2026-11-01")
    parser.add_argument("--until", default="9999", metavar="DAY", help="only calls that ended then or earlier")
    parser.add_argument("--format", choices=("table", "csv", "parquet"), help="default: table; with --rows csv")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file")


def run(args: argparse.Namespace) -> int:
    by = args.by.split(",")
    for name in by:
        if name not in KEYS:
            raise ConfigError("--by", name, f"give some of {', '.join(KEYS)}")
    rows = _rows(args)
    names = UsageRow.__struct_fields__ if args.rows else (*by, *NUMBERS)
    found = map(msgspec.structs.asdict, rows) if args.rows else iter(sum_usage(rows, by))
    match args.format or ("csv" if args.rows else "table"):
        case "csv" if args.out is None:
            _write_csv(sys.stdout, names, found)
        case "csv":
            with args.out.open("w", newline="", encoding="utf-8") as file:
                _write_csv(file, names, found)
        case "parquet":
            _write_parquet(args.out, found)
        case _:
            _show(names, found, args.out)
    return 0


def _rows(args: argparse.Namespace) -> Iterator[UsageRow]:
    """All that are asked for, file by file; days of other files are not read."""
    files = [file for folder in args.dir for file in _files(Path(folder)) if args.since <= _day(file) <= args.until]
    with counting_bar() as bar:
        for file in bar.track(files, description="files"):
            for row in read_usage(file):
                if args.tenant in (None, row.tenant) and args.since <= row.day <= args.until:
                    yield row


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError("dir", str(folder), "is no folder: give the one that ledger.dir names")
    return sorted(folder.glob("usage-*.jsonl"))


def _day(file: Path) -> str:
    """That all of its rows are of."""
    return file.name.removeprefix("usage-")[:10]


def _write_csv(file: TextIO, names: Sequence[str], found: Iterator[Mapping[str, Any]]) -> None:
    writer = csv.DictWriter(file, names)
    writer.writeheader()
    writer.writerows(found)


def _write_parquet(out: Path | None, found: Iterator[Mapping[str, Any]]) -> None:
    if out is None:
        raise ConfigError("--out", None, "parquet needs a file: name one")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("--format", "parquet", "needs pyarrow: pip install 'manta-serve[parquet]'") from None
    table = pyarrow.Table.from_pylist(list(found))
    pyarrow.parquet.write_table(table, out)


def _show(names: Sequence[str], found: Iterator[Mapping[str, Any]], out: Path | None) -> None:
    if out is not None:
        raise ConfigError("--format", "table", "goes to the terminal; with --out give csv or parquet")
    table = Table(box=None)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right" if name in NUMBERS else "left")
    for line in found:
        table.add_row(*(f"{line[name]:,.0f}" if name in NUMBERS else str(line[name]) for name in names))
    Console().print(table)
