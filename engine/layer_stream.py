"""LayerStream: brings the weights of a model's layers, one layer after the other, to where they compute.

Each layer has its place in one of a few slots on the device, and its weights lie there while it computes; the slot is
then filled with the layer whose turn is next. Knows bytes and no modules.
"""

import logging
import mmap
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from engine.errors import ConfigError

log = logging.getLogger(__name__)

#: Layers on the device at a time: one that computes, one that comes.
NUM_SLOTS = 2
_PAGE = mmap.PAGESIZE


class LayerStore(Protocol):
    """Keeps the weights of the layers in their order."""

    num_layers: int

    def add(self, weights: torch.Tensor) -> None:
        """Keep one more layer's bytes (uint8, on the CPU, whole pages)."""

    def fetch(self, layer: int, slot: torch.Tensor) -> None:
        """Copy them to the start of `slot` and return when they are there. One thread calls it."""


class HostStore:
    """In the host's memory, from where a GPU copies by itself."""

    def __init__(self) -> None:
        self.num_layers = 0
        self._layers: list[torch.Tensor] = []

    def add(self, weights: torch.Tensor) -> None:
        """See `LayerStore`."""
        self._layers.append(weights.pin_memory() if torch.cuda.is_available() else weights)
        self.num_layers += 1

    def fetch(self, layer: int, slot: torch.Tensor) -> None:
        """See `LayerStore`."""
        _copy(self._layers[layer], slot)


class FileStore:
    """In a file without a name, read past the page cache, which would keep nothing until its next turn."""

    def __init__(self, folder: str) -> None:
        self.num_layers = 0
        self._folder = folder or tempfile.gettempdir()
        self._spans: list[tuple[int, int]] = []  # first byte and number of bytes of each layer
        self._end = 0
        self._staging: torch.Tensor | None = None  # where a layer lies on its way from the file to a GPU
        if _is_memory(self._folder):
            raise ConfigError("engine.offload_dir", self._folder, "this is memory (tmpfs): name a folder on a disk")
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # lives as long as this
            self._reader = open(  # noqa: SIM115
                f"/proc/self/fd/{self._file.fileno()}", "rb", buffering=0, opener=_open_direct
            )
        except OSError as error:
            raise ConfigError(
                "engine.offload_dir",
                self._folder,
                f"the layers cannot be kept there ({error}): name a folder on a disk",
            ) from error

    def add(self, weights: torch.Tensor) -> None:
        """See `LayerStore`. Raises `ConfigError` when the disk is full."""
        view, done = _bytes(weights), 0
        try:
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], self._end + done)
            os.fdatasync(self._file.fileno())
        except OSError as error:
            held = f"{self.num_layers} layers of {len(view) >> 20} MiB are there"
            raise ConfigError("engine.offload_dir", self._folder, f"{error.strerror} ({held}): name another") from error
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._spans.append((self._end, len(view)))
        self._end += len(view)
        self.num_layers += 1

    def fetch(self, layer: int, slot: torch.Tensor) -> None:
        """See `LayerStore`."""
        start, size = self._spans[layer]
        if slot.device.type != "cpu" and self._staging is None:
            self._staging = torch.empty(slot.shape[0], dtype=torch.uint8, pin_memory=True)
        target = slot if self._staging is None else self._staging
        view, done = _bytes(target[:size]), 0
        while done < size:
            read = os.preadv(self._reader.fileno(), [view[done:]], start + done)
            if not read:
                raise OSError(f"the file of the offloaded layers ends at byte {start + done}")
            done += read
        if self._staging is not None:
            _copy(self._staging[:size], slot)


class LayerStream:
    """Has layers 0, 1, ... in `slots[layer % len(slots)]` in turn, over and over. The forward pass calls it.

    After a pass that was broken off the next one begins with layer 0, as every pass does.
    """

    def __init__(self, store: LayerStore, slots: list[torch.Tensor]) -> None:
        self._store, self._slots = store, slots
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="offload")
        self._coming: dict[int, Future[None]] = {}
        self._is_free = [True] * len(slots)
        self._last_use: list[torch.cuda.Event | None] = [None] * len(slots)  # what a GPU still computes there
        self._turn, self._is_inside = 0, False
        self._next = 0
        self._fetch()

    def enter(self, layer: int) -> None:
        """Return once the layer's weights are there. Raises what reading them raised."""
        if self._is_inside or layer != self._turn:
            self._restart()
        self._is_inside = True
        self._coming.pop(layer).result()

    def leave(self, layer: int) -> None:
        """The layer has computed, or, on a GPU, has been told to."""
        self._turn, self._is_inside = (layer + 1) % self._store.num_layers, False
        self._free(layer % len(self._slots))
        self._fetch()

    def _restart(self) -> None:
        wait(self._coming.values())
        self._coming.clear()
        for slot in range(len(self._slots)):
            self._free(slot)
        self._next = 0
        self._fetch()

    def _free(self, slot: int) -> None:
        if self._slots[slot].device.type == "cuda":
            self._last_use[slot] = torch.cuda.current_stream(self._slots[slot].device).record_event()
        self._is_free[slot] = True

    def _fetch(self) -> None:
        while self._is_free[slot := self._next % len(self._slots)]:
            self._is_free[slot] = False
            self._coming[self._next] = self._fetcher.submit(
                _fetch_into, self._store, self._next, self._slots[slot], self._last_use[slot]
            )
            self._next = (self._next + 1) % self._store.num_layers


def make_slots(store: LayerStore, num_bytes: int, device: torch.device) -> list[torch.Tensor]:
    """Room for layers of up to `num_bytes`, at page boundaries."""
    count = min(NUM_SLOTS, store.num_layers)
    if device.type == "cpu":
        return [torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8) for _ in range(count)]
    return [torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(count)]


def whole_pages(num_bytes: int) -> int:
    """So many bytes, rounded up to pages: reading past the page cache asks for that."""
    return -(-num_bytes // _PAGE) * _PAGE


def _fetch_into(store: LayerStore, layer: int, slot: torch.Tensor, last_use: torch.cuda.Event | None) -> None:
    if last_use is not None:
        last_use.synchronize()
    store.fetch(layer, slot)


def _copy(weights: torch.Tensor, slot: torch.Tensor) -> None:
    """From pinned host memory to a GPU on a stream beside the one that computes."""
    if slot.device.type == "cpu":
        slot[: len(weights)].copy_(weights)
        return
    stream = torch.cuda.Stream(slot.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        slot[: len(weights)].copy_(weights, non_blocking=True)
    stream.synchronize()


def _bytes(memory: torch.Tensor) -> memoryview:
    array: Any = memory.numpy()
    return memoryview(array)


def _is_memory(folder: str) -> bool:
    """Whether the folder's file system keeps its files in memory."""
    path = os.path.realpath(folder)
    mounts = [mount for mount in psutil.disk_partitions(all=True) if Path(path).is_relative_to(mount.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda mount: len(mount.mountpoint)).fstype in ("tmpfs", "ramfs")


def _open_direct(path: str, flags: int) -> int:
    """Past the page cache where the file system can."""
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        log.warning("offload: %s cannot be read past the page cache, which is slower", path)
        return os.open(path, flags)
