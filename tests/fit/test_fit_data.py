"""Sources by name, parts, encodings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fit.made_data import ragged_rows, write_parquet
from throughtime.fit.data.parts import PARTS
from throughtime.fit.data.split import assign_parts
from throughtime.fit.data.table import Table
from throughtime.fit.errors import FitError
from throughtime.fit.options import DataOptions
from throughtime.fit.tasks.classify.encoding import encode, learn_encoding
from throughtime.fit.tasks.classify.sources import absolute_source, read_data, read_table, source_name


def make_table(labels: list, values: list | None = None, parts: list[str] | None = None) -> Table:
    """One step a row."""
    count = len(labels)
    steps = np.asarray(values if values is not None else [[0.0]] * count)
    return Table(
        steps, np.ones(count, np.int64), np.asarray(labels), np.asarray(parts or [""] * count), np.arange(count)
    )


def test_digits() -> None:
    data = read_data(DataOptions(), tokens=False)
    sizes = [len(data.part(part)) for part in PARTS]
    assert sum(sizes) == 1797
    assert data.test.values.shape == (8 * len(data.test), 8)
    assert 0 <= data.train.values.min() < data.train.values.max() <= 1
    assert data.encoding.classes == tuple("0123456789")


def test_the_split_is_fixed_by_its_seed() -> None:
    rows = {seed: read_data(DataOptions(split_seed=seed), tokens=False).test.rows.tolist() for seed in (0, 1)}
    assert rows[0] == read_data(DataOptions(), tokens=False).test.rows.tolist() != rows[1]


def test_parts_do_not_overlap_and_hold_every_row() -> None:
    data = read_data(DataOptions(validation=0.25, test=0.5), tokens=False)
    rows = np.concatenate([data.part(part).rows for part in PARTS])
    assert sorted(rows) == list(range(1797))
    assert len(data.test) == round(0.5 * 1797)
    assert len(data.validation) == round(0.25 * 1797)


def test_what_a_source_says_of_its_parts_stands(idx_directory: Path) -> None:
    data = read_data(DataOptions(data=f"idx:{idx_directory}", validation=0.1), tokens=False)
    assert data.test.rows.tolist() == list(range(30, 40))
    assert (len(data.train), len(data.validation)) == (27, 3)


def test_words_become_classes_and_ids(tmp_path: Path) -> None:
    steps = [["b", "a"], ["a"], ["zebra", "b"]]
    path = write_parquet(tmp_path / "x.parquet", s=steps, label=["no", "yes", "no"], part=["train", "train", "test"])
    data = read_data(DataOptions(data=f"parquet:{path}", split_column="part", validation=0), tokens=True)
    assert data.encoding.vocabulary == ("a", "b")
    assert data.encoding.classes == ("no", "yes")
    assert data.train.values.tolist() == [2, 1, 1]
    assert data.test.values.tolist() == [0, 2]  # the zebra is unknown
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [0]


def test_the_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    rows = ragged_rows(40)
    prints = set()
    for change in (0.0, 1e-3):
        rows["steps"][7] = [*rows["steps"][7], change]
        path = write_parquet(tmp_path / "x.parquet", **rows)
        prints.add(read_data(DataOptions(data=f"parquet:{path}"), tokens=False).fingerprint)
    assert len(prints) == 2


def test_names_of_sources(tmp_path: Path) -> None:
    assert source_name("digits") == "digits"
    assert source_name(f"parquet:{tmp_path}/gas.parquet") == "gas"
    assert absolute_source("idx:.") == f"idx:{Path.cwd()}"


def test_rows_are_taken_in_the_order_asked_for() -> None:
    table = Table(np.arange(6.0)[:, None], np.asarray([2, 0, 3, 1]), np.arange(4), np.asarray([""] * 4), np.arange(4))
    taken = table.take(np.asarray([3, 2, 1]))
    assert taken.values.ravel().tolist() == [5, 2, 3, 4]
    assert taken.lengths.tolist() == [1, 3, 0]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (1.0, 0.1), (0.0, 1.0)])
def test_shares_leave_some_to_train_on(validation: float, test: float) -> None:
    with pytest.raises(FitError, match="are shares of the sequences"):
        assign_parts(make_table([0, 1]), validation, test, 0)


def test_too_few_rows_to_split() -> None:
    with pytest.raises(FitError, match="sequences leave none for the"):
        assign_parts(make_table([0, 1]), 0.1, 0.1, 0)


ROWS = np.arange(3)


@pytest.mark.parametrize(("labels", "detail"), [([0, 1, 3], "row 2 has 3"), ([0, -1, 2], "row 1 has -1")])
def test_labels_out_of_range(labels: list[int], detail: str) -> None:
    table = make_table(labels)
    with pytest.raises(FitError, match="labels out of range") as caught:
        encode(table, learn_encoding(table, ROWS, classes=3))
    assert f"the classes are 0 to 2, {detail}" in str(caught.value)


def test_a_label_that_training_never_shows() -> None:
    table = make_table(["a", "b", "c"])
    with pytest.raises(FitError, match="labels out of range") as caught:
        encode(table, learn_encoding(table, ROWS[:2], None))
    assert "the classes are a, b, row 2 has 'c'" in str(caught.value)


def test_a_label_that_is_no_class_number() -> None:
    with pytest.raises(FitError, match="are the numbers of the classes") as caught:
        learn_encoding(make_table([0, 20231231, 1]), ROWS, None)
    assert "label 20231231 of sequence 1 " in str(caught.value)


def test_labels_of_another_kind() -> None:
    encoding = learn_encoding(make_table([0, 1, 2]), ROWS, None)
    with pytest.raises(FitError, match="labels of this model are"):
        encode(make_table(["a", "b", "c"]), encoding)


def test_no_labels() -> None:
    with pytest.raises(FitError, match="training needs a label"):
        learn_encoding(replace(make_table([0, 1, 2]), labels=None), ROWS, None)


def test_steps_of_another_width() -> None:
    encoding = learn_encoding(make_table([0, 1, 2]), ROWS, None)
    with pytest.raises(FitError, match="this model reads steps of") as caught:
        encode(make_table([0, 1, 2], [[0.0, 1.0]] * 3), encoding)
    assert "steps of 1 numbers; the data has steps of 2 numbers" in str(caught.value)


def test_tokens_of_another_kind() -> None:
    encoding = learn_encoding(make_table([0, 1, 2], ["a", "b", "c"]), ROWS, None)
    with pytest.raises(FitError, match="tokens of this model are like"):
        encode(make_table([0, 1, 2], [7, 8, 9]), encoding)


@pytest.mark.parametrize("source", ["mnist", "idx:", "csv:x.csv"])
def test_an_unknown_source(source: str) -> None:
    with pytest.raises(FitError, match="--data is 'digits'"):
        read_table(DataOptions(data=source), tokens=False, need_labels=True)


def test_pixels_are_no_tokens() -> None:
    with pytest.raises(FitError, match="has rows of pixels as steps"):
        read_table(DataOptions(), tokens=True, need_labels=True)
