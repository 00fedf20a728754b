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

__all__ = ["SpillFile", "StepFile"]

Room = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class _Place:
    offset: int
    shape: torch.Size
    dtype: torch.dtype


class SpillFile:
    """Room for `size` bytes. `write` and `prefetch` return at once; `read` waits for what it needs."""

    def __init__(self, size: int, directory: str | None = None) -> None:
        self._file = _File(directory, size)
        self._end = 0
        self._places: dict[object, dict[str, _Place]] = {}
        self._writing: Future[None] | None = None
        self._ahead: dict[object, Future[dict[str, Tensor]]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="throughtime-spill")

    def write(self, key: object, tensors: dict[str, Tensor]) -> None:
        """Write behind. The tensors must not change until they are written. One write at most is under way."""
        places = {}
        for name, tensor in tensors.items():
            places[name] = _Place(self._end, tensor.shape, tensor.dtype)
            self._end += tensor.numel() * tensor.element_size()
        self._wait()
        self._places[key] = places
        self._writing = self._worker.submit(self._file.write, places, dict(tensors))

    def prefetch(self, key: object, room: Room | None = None) -> None:
        """Read ahead what was written under the key, into the beginning of the tensors that `room` makes."""
        if key not in self._ahead:
            places = self._places[key]
            # Made by the caller's thread: memory that threads allocate for each other comes back late.
            made = room() if room else {name: torch.empty(p.shape, dtype=p.dtype) for name, p in places.items()}
            self._ahead[key] = self._worker.submit(self._file.read, places, made)

    def read(self, key: object, room: Room | None = None) -> dict[str, Tensor]:
        """What was written under the key; with `room`, at the beginning of its tensors."""
        self._wait()
        self.prefetch(key, room)
        return self._ahead.pop(key).result()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


class StepFile:
    """A tensor by steps, [T, ...]: some are added at the end at a time, and any of them are read."""

    def __init__(self, directory: str | None = None) -> None:
        self._file = _File(directory, 0)
        self._step = torch.empty(0)
        self.steps = 0

    def add(self, some: Tensor) -> None:
        """Some steps more, all of one shape and dtype."""
        self._step = torch.empty(some.shape[1:], dtype=some.dtype, device="meta")
        self._file.write({"": self._place(self.steps, len(some))}, {"": some})
        self.steps += len(some)

    def read(self, start: int, stop: int) -> Tensor:
        """The steps [start, stop)."""
        place = self._place(start, stop - start)
        room = {"": torch.empty(place.shape, dtype=place.dtype)}
        return self._file.read({"": place}, room)[""]

    def _place(self, start: int, count: int) -> _Place:
        return _Place(start * self._step.nbytes, torch.Size((count, *self._step.shape)), self._step.dtype)


class _File:
    """An open file without a name. It closes with its last owner, which may be the thread that still writes."""

    def __init__(self, directory: str | None, size: int) -> None:
        directory = directory or tempfile.gettempdir()
        self.directory, self.descriptor = directory, -1
        try:
            self.descriptor, path = tempfile.mkstemp(prefix="throughtime-", dir=directory)
            os.unlink(path)
        except OSError as error:
            raise SpillError(
                f"Spill: cannot make a file in {directory}: {error.strerror}. "
                f"Name a directory that exists and can be written, Spill(directory=...)."
            ) from error
        self._reserve(size)

    def _reserve(self, size: int) -> None:
        if not size or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            raise SpillError(
                f"Spill: {self.directory} has no room for the {size} bytes of this call: {error.strerror}. "
                f"Name another directory, or use Recompute()."
            ) from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def write(self, places: dict[str, _Place], tensors: dict[str, Tensor]) -> None:
        """Empties `tensors`: who waits for the end may count on their room, whatever the pool still holds."""
        while tensors:
            name, tensor = tensors.popitem()
            self._move(lambda part, at: os.pwrite(self.descriptor, part, at), tensor.contiguous(), places[name].offset)

    def read(self, places: dict[str, _Place], room: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, place in places.items():
            part_of_room = room[name].view(-1)[: place.shape.numel()]
            self._move(lambda part, at: os.preadv(self.descriptor, [part], at), part_of_room, place.offset)
        return room

    def _move(self, some: Callable[[memoryview, int], int], tensor: Tensor, offset: int) -> None:
        """A positioned write or read may be short: go on until all is moved."""
        data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")
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
