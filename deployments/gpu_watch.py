"""GpuWatch: a replica's GPUs as NVML sees them, read by a thread of its own, for a call of the library may hang.

Nothing here is needed to serve: without the library (extra `gpu`), a driver or a device there is nothing to read.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.frames import GpuReading
from cluster.replica.gpu_faults import STALE_S, fault_of_ecc, fault_of_xid

READ_S = 2.0
logger = logging.getLogger("manta.gpu")


def watch_gpus() -> "GpuWatch | None":
    """Of the devices that this process may use; None without the library."""
    try:
        import pynvml
    except ImportError:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return GpuWatch(pynvml, None if visible is None else [name.strip() for name in visible.split(",") if name.strip()])


class _Device:
    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self.handle = nvml, handle
        self.uuid = str(nvml.nvmlDeviceGetUUID(handle))
        self.fault = ""
        self._ecc_at_start = self._num_ecc_errors()

    def read(self) -> GpuReading:
        """What can be read. A fault stays: who had one is not trusted again."""
        nvml, handle = self._nvml, self.handle
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        rates = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        self.fault = self.fault or fault_of_ecc(self._ecc_at_start, self._num_ecc_errors())
        return GpuReading(
            self.uuid,
            None if memory is None else int(memory.used),
            None if memory is None else int(memory.total),
            None if rates is None else rates.gpu / 100,
            None if milliwatts is None else milliwatts / 1000,
            self.fault,
        )

    def send_errors_to(self, errors: Any) -> None:
        """XID errors will be found there, if the device tells them."""
        nvml = self._nvml
        self._ask(lambda: nvml.nvmlDeviceRegisterEvents(self.handle, nvml.nvmlEventTypeXidCriticalError, errors))

    def _num_ecc_errors(self) -> int | None:
        nvml = self._nvml
        kinds = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        number: int | None = self._ask(lambda: nvml.nvmlDeviceGetTotalEccErrors(self.handle, *kinds))
        return number

    def _ask(self, question: Callable[[], Any]) -> Any:
        """None where the device does not say."""
        try:
            return question()
        except self._nvml.NVMLError as error:
            if error.value in (self._nvml.NVML_ERROR_GPU_IS_LOST, self._nvml.NVML_ERROR_RESET_REQUIRED):
                self.fault = self.fault or str(error)
            return None


class GpuWatch:
    """Reads every two seconds. `nvml`: the library; `names`: as in CUDA_VISIBLE_DEVICES; None: all devices."""

    def __init__(self, nvml: Any, names: list[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml, self._names, self._clock = nvml, names, clock
        self._devices: list[_Device] = []
        self._readings: list[GpuReading] = []
        self._read_at = clock()
        threading.Thread(target=self._run, name="gpu-watch", daemon=True).start()

    def readings(self) -> list[GpuReading]:
        """The last ones; none where they are stale, as those of a library that hangs."""
        return self._readings if self._clock() - self._read_at < STALE_S else []

    @property
    def fault(self) -> str:
        """What is wrong with a device; empty: nothing that is known."""
        return next((f"GPU {device.uuid}: {device.fault}" for device in self._devices if device.fault), "")

    def _run(self) -> None:
        try:
            self._nvml.nvmlInit()
            self._devices = [_Device(self._nvml, handle) for handle in _handles(self._nvml, self._names)]
            errors = self._nvml.nvmlEventSetCreate()
        except self._nvml.NVMLError as error:
            logger.warning("no GPU can be read: %s", error)
            return
        for device in self._devices:
            device.send_errors_to(errors)
        while True:
            self._readings = [device.read() for device in self._devices]
            self._read_at = self._clock()
            self._wait_for_errors(errors)

    def _wait_for_errors(self, errors: Any) -> None:
        """Until the next reading is due."""
        started = self._clock()
        try:
            event = self._nvml.nvmlEventSetWait_v2(errors, int(READ_S * 1000))
        except self._nvml.NVMLError:  # nothing has happened, or the device tells nothing
            time.sleep(max(0.0, READ_S - (self._clock() - started)))
            return
        uuid = str(self._nvml.nvmlDeviceGetUUID(event.device))
        for device in self._devices:
            if device.uuid == uuid:
                device.fault = device.fault or fault_of_xid(int(event.eventData))


def _handles(nvml: Any, names: list[str] | None) -> list[Any]:
    if names is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]
