"""MNIST's IDX files -> Table: the rows of a picture are the steps.

Source: http://yann.lecun.com/exdb/mnist ("The IDX file format"): two zero bytes, a type (8: unsigned bytes), the
number of dimensions, each dimension as a big-endian 32-bit number, then the data.
"""

import gzip
import struct
from pathlib import Path

import numpy as np

from throughtime.fit.data.table import Table
from throughtime.fit.errors import FitError

__all__ = ["read_idx"]

PARTS = {"train": "train", "t10k": "test"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
UNSIGNED_BYTE = 8


def read_idx(directory: Path) -> Table:
    """train-* becomes the training part, t10k-* the test part."""
    if not directory.is_dir():
        raise FitError(f"idx: {directory} is not a directory. Give the one that holds {_names('train', IMAGES)}.")
    files = {stem: (_find(directory, stem, IMAGES), _find(directory, stem, LABELS)) for stem in PARTS}
    pairs = {stem: _read_pair(*paths) for stem, paths in files.items()}
    _check_same_size(directory, pairs)
    images = np.concatenate([pair[0] for pair in pairs.values()])
    count, height, width = images.shape
    return Table(
        values=images.reshape(count * height, width).astype(np.float32) / 255,
        lengths=np.full(count, height),
        labels=np.concatenate([pair[1] for pair in pairs.values()]).astype(np.int64),
        parts=np.repeat(list(PARTS.values()), [len(pair[1]) for pair in pairs.values()]),
        rows=np.arange(count),
        picture=True,
    )


def _names(stem: str, kind: str) -> str:
    return f"{stem}-{kind} or {stem}-{kind}.gz"


def _find(directory: Path, stem: str, kind: str) -> Path:
    for suffix in ("", ".gz"):
        path = directory / f"{stem}-{kind}{suffix}"
        if path.is_file():
            return path
    there = ", ".join(sorted(p.name for p in directory.iterdir())[:12]) or "nothing"
    raise FitError(f"idx: {directory} has no {_names(stem, kind)}. It holds: {there}.")


def _read_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _read_array(images_path, 3), _read_array(labels_path, 1)
    if len(images) != len(labels):
        raise FitError(
            f"idx: every image has one label: {images_path} holds {len(images)} images, "
            f"{labels_path} holds {len(labels)} labels."
        )
    return images, labels


def _read_array(path: Path, dimensions: int) -> np.ndarray:
    data = _read_bytes(path)
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if data[:4] != magic:
        raise FitError(
            f"idx: {path} must start with the magic number 0x{magic.hex()} (unsigned bytes, {dimensions} "
            f"dimension{'s' * (dimensions > 1)}), got 0x{data[:4].hex() or '(an empty file)'}."
        )
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise FitError(f"idx: {path} ends within its header of {header} bytes, after {len(data)}.")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    promised, there = int(np.prod(shape, dtype=object)), len(data) - header
    if there != promised:
        raise FitError(
            f"idx: the header of {path} says {' x '.join(map(str, shape))} = {promised} bytes of data; "
            f"{'only ' if there < promised else ''}{there} are there. Fetch the file again."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError) as error:
        raise FitError(f"idx: cannot read {path}: {error}. Fetch the file again.") from error


def _check_same_size(directory: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    sizes = {stem: images.shape[1:] for stem, (images, _) in pairs.items()}
    if len(set(sizes.values())) > 1:
        words = ", ".join(f"{stem} {height} x {width}" for stem, (height, width) in sizes.items())
        raise FitError(f"idx: all pictures in {directory} have one size, got {words} pixels.")
