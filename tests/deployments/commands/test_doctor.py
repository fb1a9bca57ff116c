"""`manta doctor`: every reading is judged, every trouble has a remedy, the exit code says whether serving works."""

import argparse
import json
import socket
import sys
from pathlib import Path

import pytest

from deployments.commands import doctor
from deployments.commands import doctor_readings as readings
from deployments.commands.doctor import Finding, Status
from deployments.commands.doctor_readings import (
    GIB,
    CoreReading,
    DiskReading,
    GpuReading,
    KernelReading,
    MemoryReading,
    PortReading,
    TorchReading,
)

PINS = {"torch": "2.13.0", "ray": "2.60.0", "transformers": "5.23.0", "msgspec": "0.22.0"}


def test_packages_as_pinned_whatever_the_build() -> None:
    installed: dict[str, str | None] = {**PINS, "torch": "2.13.0+cpu"}
    assert [finding.status for finding in doctor.judge_packages(PINS, installed)] == [Status.OK] * 4


def test_packages_that_differ_are_named_with_both_versions() -> None:
    installed: dict[str, str | None] = {**PINS, "ray": None, "torch": "2.11.0", "msgspec": None}
    torch, ray, transformers, others = doctor.judge_packages(PINS, installed)
    assert torch.status is Status.WARNING and torch.detail == "2.11.0, pinned is 2.13.0"
    assert ray.status is Status.FAILED and ray.detail == "missing, pinned is 2.60.0"
    assert transformers.status is Status.OK
    assert others.status is Status.FAILED and others.detail == "msgspec missing (pinned 0.22.0)"
    assert all("scripts/setup" in finding.remedy for finding in (torch, ray, others))


def test_not_installed_at_all() -> None:
    (finding,) = doctor.judge_packages({}, {})
    assert finding.status is Status.FAILED and "scripts/setup" in finding.remedy


@pytest.mark.parametrize(
    ("finding", "status", "remedy"),
    [
        (doctor.judge_python((3, 10, 2)), Status.FAILED, "3.11"),
        (doctor.judge_python((3, 12, 0)), Status.OK, ""),
        (doctor.judge_torch(TorchReading(0.1, error="ImportError: libgomp")), Status.FAILED, "scripts/setup"),
        (doctor.judge_torch(TorchReading(1.8)), Status.OK, ""),
        (doctor.judge_cores(CoreReading(1, None, "x86_64", True)), Status.WARNING, "--replicas 1"),
        (doctor.judge_cores(CoreReading(2, 2.0, "x86_64", False)), Status.OK, ""),
        (doctor.judge_memory(MemoryReading(GIB, 8 * GIB, None)), Status.FAILED, "2 GiB"),
        (doctor.judge_memory(MemoryReading(3 * GIB, 8 * GIB, 4 * GIB)), Status.WARNING, "--replicas 1"),
        (doctor.judge_memory(MemoryReading(16 * GIB, 24 * GIB, None)), Status.OK, ""),
        (doctor.judge_compiler(None), Status.WARNING, "install g++"),
        (doctor.judge_compiler("/usr/bin/g++"), Status.OK, ""),
        (doctor.judge_kernels(KernelReading(error="isa.h: error: no")), Status.WARNING, "engine.kernels.build"),
        (doctor.judge_kernels(KernelReading("/cache/lib.so", "AMX")), Status.OK, ""),
        (doctor.judge_gpu(GpuReading((), "H100, 580.1")), Status.WARNING, "CUDA"),
        (doctor.judge_gpu(GpuReading(("H100 (80 GiB)",), "H100, 580.1")), Status.OK, ""),
        (doctor.judge_gpu(GpuReading((), "")), Status.OK, ""),
        (doctor.judge_port(PortReading("127.0.0.1", 8000, "Address already in use")), Status.WARNING, "--port 8001"),
        (doctor.judge_disk(DiskReading("/tmp", 4 * GIB, 100 * GIB)), Status.FAILED, "95 %"),
        (doctor.judge_disk(DiskReading("/tmp", GIB, 8 * GIB)), Status.WARNING, "free space"),
        (doctor.judge_disk(DiskReading("/tmp", 50 * GIB, 100 * GIB)), Status.OK, ""),
        (doctor.judge_shared_memory(DiskReading("/dev/shm", 64 * 1024**2, GIB)), Status.WARNING, "--shm-size"),
        (doctor.judge_shared_memory(None), Status.OK, ""),
        (doctor.judge_open_files(1024), Status.WARNING, "ulimit"),
        (doctor.judge_open_files(65536), Status.OK, ""),
    ],
)
def test_judgements(finding: Finding, status: Status, remedy: str) -> None:
    assert finding.status is status
    assert remedy in finding.remedy
    assert bool(finding.remedy) == (status is not Status.OK)


def test_a_taken_port_is_found_with_its_owner() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        taken = readings.read_port("127.0.0.1", port)
    assert "in use" in taken.error
    assert taken.owner == "" or "process" in taken.owner
    assert readings.read_port("127.0.0.1", port).error == ""


def test_an_address_of_another_host_cannot_be_served() -> None:
    assert readings.read_port("192.0.2.1", 8000).error


def test_memory_limit_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * 1024**2}\n")
    (tmp_path / "memory.current").write_text(f"{1024**2}\n")
    memory = readings.read_memory(tmp_path)
    assert (memory.limit, memory.available) == (2 * 1024**2, 1024**2)
    (tmp_path / "memory.max").write_text("max\n")
    assert readings.read_memory(tmp_path).limit is None


def test_pins_come_from_the_installed_project() -> None:
    pins = readings.read_pins()
    assert {"torch", "ray", "transformers", "msgspec"} <= pins.keys()
    assert readings.read_installed().keys() == pins.keys()


def run_doctor(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(arguments))


def test_json_report_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_doctor("--json", "--port", "0")
    findings = json.loads(capsys.readouterr().out)
    by_check = {finding["check"]: finding for finding in findings}
    assert by_check["Python"]["detail"] == ".".join(map(str, sys.version_info[:3]))
    assert by_check["torch"]["status"] == "ok"
    assert all(finding["remedy"] for finding in findings if finding["status"] != "ok")
    assert code == int(any(finding["status"] == "failed" for finding in findings))


def test_table_ends_with_the_conclusion(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.readings, "read_open_files", lambda: 64)
    monkeypatch.setattr(doctor.readings, "read_memory", lambda: MemoryReading(GIB, 8 * GIB, None))
    assert run_doctor("--port", "0") == 1
    report = capsys.readouterr().out
    assert "raise it: ulimit -n 65536" in report
    assert report.splitlines()[-1].startswith("Not ready: 1 failed")
