"""IDX files: what is read, and what is refused."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fit.made_data import write_idx
from throughtime.fit.errors import FitError
from throughtime.fit.tasks.classify.idx import read_idx


def test_rows_of_pixels_are_steps(idx_directory: Path) -> None:
    table = read_idx(idx_directory)
    assert table.values.shape == (40 * 4, 3)
    assert table.values.dtype == np.float32
    assert 0 <= table.values.min() < table.values.max() <= 1
    assert (table.lengths == 4).all()
    assert table.labels is not None
    assert table.labels[:4].tolist() == [0, 1, 2, 0]
    assert table.parts.tolist() == ["train"] * 30 + ["test"] * 10


def test_zipped_and_plain_are_the_same(idx_directory: Path) -> None:
    zipped = idx_directory / "train-images-idx3-ubyte.gz"
    before = read_idx(idx_directory)
    zipped.with_suffix("").write_bytes(gzip.decompress(zipped.read_bytes()))
    zipped.unlink()
    assert np.array_equal(read_idx(idx_directory).values, before.values)


def remove(path: Path) -> None:
    path.unlink()


def cut(keep: int) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:keep])

    return do


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def set_magic(path: Path) -> None:
    path.write_bytes(b"\0\0\x0d\3" + path.read_bytes()[4:])


def other_size(path: Path) -> None:
    write_idx(path, np.zeros((10, 5, 3)))


def fewer(path: Path) -> None:
    write_idx(path, np.zeros((9, 4, 3)))


@pytest.mark.parametrize(
    ("name", "spoil", "match", "detail"),
    [
        ("t10k-images-idx3-ubyte", remove, "It holds: ", "t10k-images-idx3-ubyte.gz"),
        ("t10k-images-idx3-ubyte", cut(50), "bytes of data; ", "10 x 4 x 3 = 120 bytes of data; only 34 are there"),
        ("t10k-images-idx3-ubyte", lengthen, "bytes of data; ", "121 are there"),
        ("t10k-images-idx3-ubyte", cut(10), "ends within its header", "after 10"),
        ("t10k-images-idx3-ubyte", cut(0), "must start with the magic number", "an empty file"),
        ("t10k-images-idx3-ubyte", set_magic, "must start with the magic number", "0x00000803"),
        ("t10k-images-idx3-ubyte", other_size, "all pictures in", "t10k 5 x 3"),
        ("t10k-images-idx3-ubyte", fewer, "every image has one label", "9 images"),
        ("train-images-idx3-ubyte.gz", cut(60), "idx: cannot read", "train-images"),
        ("train-labels-idx1-ubyte.gz", lambda path: path.write_bytes(b"no gzip"), "idx: cannot read", "train-labels"),
    ],
)
def test_what_is_refused(
    idx_directory: Path, name: str, spoil: Callable[[Path], object], match: str, detail: str
) -> None:
    spoil(idx_directory / name)
    with pytest.raises(FitError, match=match) as caught:
        read_idx(idx_directory)
    assert detail in str(caught.value)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="Give the one that holds"):
        read_idx(tmp_path / "nowhere")
