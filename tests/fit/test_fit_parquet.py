"""Parquet files: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fit.made_data import write_parquet
from throughtime.fit.data.parquet import Columns, read_parquet
from throughtime.fit.errors import FitError

GOOD = {"steps": [[1.0, 2.0], [], [3.0]], "label": [0, 1, 0]}


def read(path: Path, tokens: bool = False, **columns: object) -> object:
    return read_parquet(path, Columns(**columns), tokens)  # type: ignore[arg-type]


def test_scalars_are_steps_of_one_number(tmp_path: Path) -> None:
    table = read_parquet(write_parquet(tmp_path / "x.parquet", **GOOD), Columns(), tokens=False)
    assert table.values.tolist() == [[1.0], [2.0], [3.0]]
    assert table.lengths.tolist() == [2, 0, 1]
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.int16(), 2)])
def test_lists_of_numbers_are_steps(tmp_path: Path, kind: pa.DataType) -> None:
    steps = pa.array([[[1, 2], [3, 4]], [[5, 6]]], pa.list_(kind))
    table = read_parquet(write_parquet(tmp_path / "x.parquet", s=steps, label=["a", "b"]), Columns(), tokens=False)
    assert table.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert table.lengths.tolist() == [2, 1]


def test_several_columns_stand_side_by_side(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", a=[[1, 2], [3]], b=[[[7, 8], [9, 9]], [[5, 5]]], label=[0, 1])
    table = read_parquet(path, Columns(("b", "a")), tokens=False)
    assert table.values.tolist() == [[7, 8, 1], [9, 9, 2], [5, 5, 3]]


def test_a_file_of_several_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [[float(i)] * (i % 3) for i in range(50)]
    pq.write_table(pa.table({"s": rows, "label": [0] * 50}), path, row_group_size=7)
    table = read_parquet(path, Columns(), tokens=False)
    assert table.values.ravel().tolist() == [float(i) for i in range(50) for _ in range(i % 3)]


@pytest.mark.parametrize(
    ("tokens", "expected"), [([[7, 3], [3]], [7, 3, 3]), ([["to", "be"], ["be"]], ["to", "be", "be"])]
)
def test_tokens(tmp_path: Path, tokens: list, expected: list) -> None:
    table = read_parquet(write_parquet(tmp_path / "x.parquet", s=tokens, label=[0, 1]), Columns(), tokens=True)
    assert table.values.tolist() == expected


def test_a_split_column_and_a_file_without_labels(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", s=[[1], [2], [3]], part=["Train", "val", "test"])
    columns = Columns(split="part").where_present(path)
    table = read_parquet(path, columns, tokens=False)
    assert table.labels is None
    assert table.parts.tolist() == ["train", "validation", "test"]


NAN = float("nan")
# columns, how they are read, a word of the message, a detail of it
REFUSED = [
    ({"a": [[1]], "b": [0]}, {}, "has no column ", "'label'. Its columns are: a, b"),
    (
        {"a": [[1]], "label": [0]},
        {"steps": ("z",)},
        "has no column .*Its columns are",
        "'z'. Its columns are: a, label",
    ),
    ({"a": [1], "label": [0]}, {}, "none of the columns of", "a (int64), label (int64)"),
    ({"a": [1], "label": [0]}, {"steps": ("a",)}, "must hold lists of steps", "got int64"),
    ({"a": [[1]], "b": [[1]], "label": [0]}, {}, "has several list columns", "--columns a,b"),
    ({"a": [[], []], "label": [0, 1]}, {}, "no row has a single step", "column a is empty"),
    ({"a": pa.array([], pa.list_(pa.int8())), "label": pa.array([], pa.int8())}, {}, "has no rows", ""),
    ({"a": [[1], None], "label": [0, 1]}, {}, "An empty list is a sequence of no steps", "row 1"),
    ({"a": [[1.0], [2.0, None]], "label": [0, 1]}, {}, "holds a null. Fill", "row 1"),
    ({"a": [[[1.0, 2.0]], [[2.0, None]]], "label": [0, 1]}, {}, "holds a null. Fill", "row 1"),
    ({"a": [[1.0], [2.0, 3.0, NAN]], "label": [0, 1]}, {}, "steps must be finite numbers", "row 1, step 2"),
    ({"a": [[], [float("inf")]], "label": [0, 1]}, {}, "steps must be finite numbers", "row 1, step 0"),
    ({"a": [[[1], [2]], [[1, 2]]], "label": [0, 1]}, {}, "has the same width", "row 1, step 0 has 2"),
    ({"a": [[[], []]], "label": [0]}, {}, "are lists of no numbers", ""),
    ({"a": [["x"]], "label": [0]}, {}, "steps are numbers or lists of numbers", "need --embed"),
    ({"a": [[0.5]], "label": [0]}, {"tokens": True}, "takes steps that are whole numbers or text", "double"),
    ({"a": [[1]], "b": [[1]], "label": [0]}, {"steps": ("a", "b"), "tokens": True}, "takes one column of", "a, b"),
    (
        {"a": [[1], [1]], "b": [[1], []], "label": [0, 1]},
        {"steps": ("a", "b")},
        "have the same number of steps",
        "in row 1, a has 1 and b has 0",
    ),
    ({"a": [[1], [1]], "label": [0, None]}, {}, "of the label column", "row 1"),
    ({"a": [[1], [1]], "label": [0.5, 1.5]}, {}, "labels are class numbers or text", "double"),
    ({"a": [[1]], "label": [0], "p": ["dev"]}, {"split": "p"}, "says train, validation or test", "'dev'"),
]


@pytest.mark.parametrize(("columns", "how", "match", "detail"), REFUSED)
def test_what_is_refused(tmp_path: Path, columns: dict, how: dict, match: str, detail: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(FitError, match=match) as caught:
        read(path, **how)
    assert detail in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="there is no file"):
        read(tmp_path / "nowhere.parquet")


def test_half_a_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", **GOOD)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FitError, match="is not a whole Parquet file"):
        read(path)


def test_a_file_that_is_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    steps = np.random.default_rng(0).standard_normal(5000).tolist()
    pq.write_table(pa.table({"s": [steps], "label": [0]}), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises(FitError, match="cannot be read to its end"):
        read(path)
