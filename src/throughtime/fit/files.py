"""Bytes -> a file that is whole or not there: written under a temporary name, flushed to disk, then moved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from throughtime.fit.errors import FitError

__all__ = ["is_unfinished", "replacing", "write_bytes", "write_text"]

SUFFIX = ".part"


def is_unfinished(path: Path) -> bool:
    """Whether this is what a killed process left of a file it was writing; the next write replaces it."""
    return path.suffix == SUFFIX


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there takes the place of `path` at the end, or vanishes."""
    temporary = path.with_name(f".{path.name}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise FitError(
            f"cannot write {path}: {error.strerror or error}.\n"
            f"Nothing half-written was left, and a file that was there before is as it was. "
            f"Make room (or choose another place) and run the same command again."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
