"""Tensors -> a private file without a name, and back: written behind, read ahead.

Positioned writes and reads into reserved space, not mapped memory: a full disk is then an error at the start, and never
a fatal signal. The file is unlinked as soon as it is open, so nothing is left behind, also after a crash.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime._errors import SpillError

__all__ = ["SpillFile"]


@dataclass(frozen=True)
class _Place:
    offset: int
    shape: torch.Size
    dtype: torch.dtype


class SpillFile:
    """Room for `size` bytes. `write` and `prefetch` return at once; `read` waits for what it needs."""

    def __init__(self, size: int, directory: str | None = None) -> None:
        self.directory = directory or tempfile.gettempdir()
        self._file = self._open(size)
        self._end = 0
        self._places: dict[object, dict[str, _Place]] = {}
        self._pending: list[Future[None]] = []
        self._ahead: dict[object, Future[dict[str, Tensor]]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="throughtime-spill")

    def _open(self, size: int) -> int:
        try:
            descriptor, path = tempfile.mkstemp(prefix="throughtime-", dir=self.directory)
        except OSError as error:
            raise SpillError(
                f"Spill: cannot make a file in {self.directory}: {error.strerror}. "
                f"Name a directory that exists and can be written, Spill(directory=...)."
            ) from error
        try:
            os.unlink(path)
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.close(descriptor)
            raise SpillError(
                f"Spill: {self.directory} has no room for the {size} bytes of this call: {error.strerror}. "
                f"Name another directory, or use Recompute()."
            ) from error
        return descriptor

    def write(self, key: object, tensors: dict[str, Tensor]) -> None:
        """Write behind. The tensors must not change until they are written; at most two writes are under way."""
        places = {}
        for name, tensor in tensors.items():
            places[name] = _Place(self._end, tensor.shape, tensor.dtype)
            self._end += tensor.numel() * tensor.element_size()
        self._places[key] = places
        while len(self._pending) > 1:
            self._pending.pop(0).result()
        self._pending.append(self._worker.submit(self._write, places, tensors))

    def prefetch(self, key: object) -> None:
        if key in self._places and key not in self._ahead:
            self._ahead[key] = self._worker.submit(self._read, self._places[key])

    def read(self, key: object) -> dict[str, Tensor]:
        """What was written under the key."""
        while self._pending:
            self._pending.pop(0).result()
        self.prefetch(key)
        return self._ahead.pop(key).result()

    def close(self) -> None:
        if self._file >= 0:
            self._worker.shutdown(wait=True, cancel_futures=True)
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()

    def _write(self, places: dict[str, _Place], tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._move(lambda part, at: os.pwrite(self._file, part, at), tensor.contiguous(), places[name].offset)

    def _read(self, places: dict[str, _Place]) -> dict[str, Tensor]:
        found = {}
        for name, place in places.items():
            found[name] = torch.empty(place.shape, dtype=place.dtype)
            self._move(lambda part, at: os.preadv(self._file, [part], at), found[name], place.offset)
        return found

    def _move(self, some: Callable[[memoryview, int], int], tensor: Tensor, offset: int) -> None:
        """A positioned write or read may be short: go on until all is moved."""
        if not tensor.numel():
            return
        data = memoryview(tensor.numpy()).cast("B")
        done = 0
        while done < len(data):
            try:
                count = some(data[done:], offset + done)
            except OSError as error:
                raise self._failed(error.strerror or str(error)) from error
            if count == 0:
                raise self._failed("it ended early")
            done += count

    def _failed(self, reason: str) -> SpillError:
        return SpillError(
            f"Spill: writing or reading the file in {self.directory} failed: {reason}. "
            f"Name another directory, or use Recompute()."
        )
