"""What is made of NVML, with a stand-in for the library: readings, faults, and a call that never returns."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.frames import GpuReading
from cluster.replica.gpu_faults import PROGRAM_XIDS, STALE_S, fault_of_ecc, fault_of_xid
from deployments.gpu_watch import GpuWatch
from tests.cluster.gateway_world import until


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class Nvml:
    """Two devices. `broken`: the answers of functions by name that differ."""

    NVMLError = NvmlError
    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED, NOT_SUPPORTED, TIMEOUT = 15, 16, 3, 10
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = nvmlEventTypeXidCriticalError = 1

    def __init__(self, **broken: Callable[..., Any]) -> None:
        self.broken = broken
        self.events: list[tuple[str, int]] = []
        self.num_waits = 0
        self._over = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return self.broken.get(name) or getattr(self, f"_{name}")

    def _nvmlInit(self) -> None:
        """It is there."""

    def _nvmlDeviceGetCount(self) -> int:
        return 2

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU-{index}"

    def _nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def _nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def _nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=10, total=80)

    def _nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=25)

    def _nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 300_500

    def _nvmlDeviceGetTotalEccErrors(self, handle: str, *kinds: int) -> int:
        return 7

    def _nvmlEventSetCreate(self) -> object:
        return object()

    def _nvmlDeviceRegisterEvents(self, handle: str, kinds: int, errors: object) -> None:
        """All are told."""

    def _nvmlEventSetWait_v2(self, errors: object, timeout_ms: int) -> Any:
        self.num_waits += 1
        if self.events:
            device, xid = self.events.pop(0)
            return SimpleNamespace(device=device, eventData=xid)
        self._over.wait()
        raise NvmlError(self.TIMEOUT)


def raising(value: int) -> Callable[..., Any]:
    def ask(*args: Any) -> Any:
        raise NvmlError(value)

    return ask


async def test_a_device_is_read_as_it_is() -> None:
    watch = GpuWatch(Nvml(), ["1"])
    await until(lambda: bool(watch.readings()))
    assert watch.readings() == [GpuReading("GPU-1", 10, 80, 0.25, 300.5)]
    assert watch.fault == ""


async def test_what_a_device_does_not_say_is_unknown_and_no_fault() -> None:
    silent = raising(Nvml.NOT_SUPPORTED)
    watch = GpuWatch(
        Nvml(
            nvmlDeviceGetPowerUsage=silent, nvmlDeviceGetTotalEccErrors=silent, nvmlDeviceRegisterEvents=silent,
            nvmlDeviceGetUtilizationRates=silent,
        ),
        ["GPU-x"],
    )  # fmt: skip
    await until(lambda: bool(watch.readings()))
    assert watch.readings() == [GpuReading("GPU-x", 10, 80)]
    assert watch.fault == ""


async def test_a_lost_device_is_a_fault_that_stays() -> None:
    watch = GpuWatch(Nvml(nvmlDeviceGetMemoryInfo=raising(Nvml.NVML_ERROR_GPU_IS_LOST)))
    await until(lambda: bool(watch.fault))
    assert watch.fault == "GPU GPU-0: error 15"
    assert watch.readings()[0].fault == "error 15"


async def test_errors_of_programs_are_no_fault_of_the_device_errors_of_the_device_are() -> None:
    nvml = Nvml()
    nvml.events = [("GPU-0", 13), ("GPU-1", 79)]
    watch = GpuWatch(nvml)
    await until(lambda: bool(watch.fault))
    assert watch.fault == "GPU GPU-1: XID 79"
    assert all(fault_of_xid(xid) == "" for xid in PROGRAM_XIDS) and fault_of_xid(48)


def test_only_new_uncorrected_errors_count() -> None:
    assert fault_of_ecc(7, 7) == fault_of_ecc(None, 7) == fault_of_ecc(7, None) == ""
    assert fault_of_ecc(7, 9) == "2 uncorrected ECC errors"


@pytest.fixture
def hanging() -> Iterator[Callable[..., Any]]:
    over = threading.Event()

    def hang(*args: Any) -> Any:
        over.wait()
        raise NvmlError(Nvml.NOT_SUPPORTED)

    yield hang
    over.set()


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetMemoryInfo"])
def test_a_library_that_hangs_holds_nobody_up_and_says_nothing(name: str, hanging: Callable[..., Any]) -> None:
    now = 0.0
    watch = GpuWatch(Nvml(**{name: hanging}), clock=lambda: now)
    assert watch.readings() == [] and watch.fault == ""


async def test_stale_readings_are_not_told() -> None:
    now = 0.0
    watch = GpuWatch(Nvml(), clock=lambda: now)
    await until(lambda: len(watch.readings()) == 2)
    now += STALE_S
    assert watch.readings() == []


async def test_without_a_driver_there_is_nothing_to_read(caplog: pytest.LogCaptureFixture) -> None:
    watch = GpuWatch(Nvml(nvmlInit=raising(12)))
    await until(lambda: "no GPU can be read" in caplog.text)
    assert watch.readings() == [] and watch.fault == ""
