"""The usage ledger on disk: every call once, whatever the disk does; its sums are the metrics'."""

import asyncio
import csv
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.calls.record import Caller, CallRecord
from cluster.calls.usage import UsageRow, sum_usage
from cluster.config import Edge, GatewayConfig, LedgerConfig, MantaConfig
from cluster.metrics import declared
from deployments import cli, usage_ledger
from deployments.usage_ledger import UsageLedger, read_usage
from engine.errors import ConfigError
from tests.cluster.gateway_world import client
from tests.deployments.gateways_world import Gateway
from tests.deployments.serving_world import serving_world, until
from tests.deployments.test_metrics import scrape


def record(call: str = "c") -> CallRecord:
    made = CallRecord(call, "m", Caller(), 1.0)
    made.end("ok", 200, 2.0)
    return made


def rows_in(folder: Path) -> list[UsageRow]:
    return [row for file in sorted(folder.glob("*.jsonl")) for row in read_usage(file)]


class Disk:
    """A ledger in a folder, and what it has lost."""

    def __init__(self, folder: Path, gateway: str = "g") -> None:
        self.lost = 0
        self.ledger = UsageLedger(str(folder), gateway, 1.0, self._count)

    def _count(self, num_rows: int) -> None:
        self.lost += num_rows


def test_every_call_is_a_row_in_the_order_of_their_ends(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "made")
    for number in range(3000):
        disk.ledger.ended(record(f"c{number}"))
    disk.ledger.close()
    assert [row.call for row in rows_in(tmp_path / "made")] == [f"c{number}" for number in range(3000)]
    assert disk.lost == 0


def test_files_end_at_their_size_and_another_start_begins_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_ledger, "MAX_FILE_BYTES", 2000)
    monkeypatch.setattr(usage_ledger, "MAX_BATCH", 2)
    for _ in range(2):
        disk = Disk(tmp_path)
        for number in range(20):
            disk.ledger.ended(record(f"c{number}"))
        disk.ledger.close()
    sizes = [file.stat().st_size for file in tmp_path.glob("*.jsonl")]
    assert len(sizes) > 4
    assert max(sizes) <= 2000
    assert len(rows_in(tmp_path)) == 40


def test_a_day_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, now = Disk(tmp_path), 1_764_201_590.0  # ten seconds before midnight
    monkeypatch.setattr(time, "time", lambda: now)
    disk.ledger.ended(record("before"))
    monkeypatch.setattr(time, "time", lambda: now + 20.0)
    disk.ledger.ended(record("after"))
    disk.ledger.close()
    for file in tmp_path.glob("*.jsonl"):
        assert {row.day for row in read_usage(file)} == {file.name.removeprefix("usage-")[:10]}
    assert len(rows_in(tmp_path)) == 2


async def test_a_full_disk_loses_rows_that_are_counted_and_leaves_no_half_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, write, is_full = Disk(tmp_path), os.write, False

    def full(file: int, data: bytes) -> int:
        if not is_full:
            return write(file, data)
        if len(data) > 50:
            return write(file, data[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    disk.ledger.ended(record("first"))
    await until(lambda: len(rows_in(tmp_path)) == 1)
    is_full = True
    for number in range(10):
        disk.ledger.ended(record(f"lost{number}"))
    await until(lambda: disk.lost == 10)
    is_full = False
    disk.ledger.ended(record("last"))
    disk.ledger.close()
    assert [row.call for row in rows_in(tmp_path)] == ["first", "last"]


def test_a_half_written_last_line_is_left_out_and_any_other_is_an_error(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.ledger.ended(record())
    disk.ledger.close()
    [file] = tmp_path.glob("*.jsonl")
    file.write_bytes(file.read_bytes() + b'{"time": "2025')
    assert len(rows_in(tmp_path)) == 1
    file.write_bytes(b"{}\n" + file.read_bytes())
    with pytest.raises(ConfigError, match="line 1 is no row"):
        rows_in(tmp_path)


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"ledger\.dir"):
        Disk(tmp_path / "file" / "folder")


async def test_the_ledger_sums_to_the_metrics(tmp_path: Path) -> None:
    settings = GatewayConfig(tenant_header="x-tenant", edge=Edge.DIRECT)
    config = MantaConfig(gateway=settings, ledger=LedgerConfig(dir=str(tmp_path)))
    async with serving_world(2, step_delay_s=0.002) as world:
        gateway = Gateway("g", world, config)
        await until(lambda: len(gateway.links.connections) == 2)
        async with client(gateway.app) as http:

            async def ask(number: int) -> None:
                sizes = {"max_tokens": 20 + number, "n": 1 + number % 3, "prompt": [5] * (10 + 20 * number)}
                body = {"model": "m", "ignore_eos": True, "stream": number % 2 == 0, **sizes}
                headers = {"x-tenant": f"tenant{number % 2}"}
                try:
                    async with asyncio.timeout(0.1 if number % 4 == 3 else 30.0):
                        await http.post("/v1/completions", json=body, headers=headers)
                except TimeoutError:
                    pass  # the client left

            await asyncio.gather(*(ask(number) for number in range(12)))
            await until(lambda: not gateway.calls.running)
            page = await scrape(http)
        await gateway.sinks.close()
        gateway.links.close()
    sums = sum_usage(rows_in(tmp_path), ["tenant"])
    assert [line["tenant"] for line in sums] == ["tenant0", "tenant1"]
    for line in sums:
        tenant = str(line["tenant"])
        assert line["requests"] == page.total(declared.CALLS, tenant=tenant) == 6
        assert line["prompt_tokens"] == page.total(declared.PROMPT_TOKENS, tenant=tenant) > 0
        assert line["cached_tokens"] == page.total(declared.CACHED_TOKENS, tenant=tenant)
        assert line["output_tokens"] == page.total(declared.OUTPUT_TOKENS, tenant=tenant) > 0
        assert line["charged_tokens"] == line["prompt_tokens"] + line["output_tokens"]  # type: ignore[operator]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    disk = Disk(tmp_path / "ledger")
    for number in range(3):
        disk.ledger.ended(record(f"c{number}"))
    disk.ledger.close()
    return tmp_path / "ledger"


def test_usage_sums_on_the_terminal(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["usage", str(ledger), "--by", "tenant,outcome"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["default", "ok", "3"]


def test_usage_exports_rows_as_csv_and_parquet(ledger: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    assert cli.main(["usage", str(ledger), "--rows", "--out", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        exported: list[Any] = list(csv.DictReader(file))
    assert [row["call"] for row in exported] == ["c0", "c1", "c2"]
    assert cli.main(["usage", str(ledger), "--rows", "--format", "parquet", "--out", str(tmp_path / "rows")]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "rows").column("call").to_pylist() == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    "words", [["nowhere"], ["LEDGER", "--by", "prompt"], ["LEDGER", "--format", "parquet"]], ids=lambda words: words[-1]
)
def test_usage_says_what_is_wrong(ledger: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["usage", *(str(ledger) if word == "LEDGER" else word for word in words)]) == 2
    assert "manta: " in capsys.readouterr().err


def test_usage_of_other_days_and_tenants_is_left_out(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--until", "2020-01-01"], ["--since", "9000"], ["--tenant", "other"]):
        assert cli.main(["usage", str(ledger), "--rows", *words]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == []
