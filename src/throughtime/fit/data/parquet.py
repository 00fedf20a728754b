"""A Parquet file -> Table: one row a sequence, list columns of steps, ragged by nature."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from throughtime.fit.data.table import Table, row_of_step
from throughtime.fit.errors import FitError

__all__ = ["Columns", "is_list", "read_columns", "read_parquet", "read_parts", "read_schema"]

PARTS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Columns:
    """Which columns mean what. `steps` empty: the only list column; `label` None: no labels are needed."""

    steps: tuple[str, ...] = ()
    label: str | None = "label"
    split: str | None = None

    def where_present(self, path: Path) -> "Columns":
        """The same, without labels and split if the file lacks them."""
        there = read_schema(path).names
        label, split = (name if name in there else None for name in (self.label, self.split))
        return Columns(self.steps, label, split)


def read_parquet(path: Path, columns: Columns, tokens: bool) -> Table:
    schema = read_schema(path)
    names = columns.steps or _only_list_column(path, schema)
    wanted = [*names, *(name for name in (columns.label, columns.split) if name)]
    table = read_columns(path, wanted)
    values, lengths = _read_steps(path, table, names, tokens)
    return Table(
        values=values,
        lengths=lengths,
        labels=_read_labels(table, columns.label) if columns.label else None,
        parts=read_parts(table, columns.split) if columns.split else np.full(len(table), ""),
        rows=np.arange(len(table)),
    )


def read_schema(path: Path) -> pa.Schema:
    if not path.is_file():
        raise FitError(f"parquet: there is no file {path}.")
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise FitError(f"parquet: {path} is not a whole Parquet file: {error}") from error


def read_columns(path: Path, names: list[str]) -> pa.Table:
    """At least one row of them."""
    there = read_schema(path).names
    for name in names:
        if name not in there:
            raise FitError(f"parquet: {path} has no column {name!r}. Its columns are: {', '.join(there)}.")
    try:
        table = pq.read_table(path, columns=names)
    except (pa.ArrowInvalid, OSError) as error:
        raise FitError(f"parquet: {path} cannot be read to its end: {error}") from error
    if not len(table):
        raise FitError(f"parquet: {path} has no rows.")
    return table


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _only_list_column(path: Path, schema: pa.Schema) -> tuple[str, ...]:
    lists = [field.name for field in schema if is_list(field.type)]
    if len(lists) == 1:
        return (lists[0],)
    if lists:
        raise FitError(
            f"parquet: {path} has several list columns: {', '.join(lists)}. Say which hold the steps, for example "
            f"--columns {','.join(lists)}."
        )
    kinds = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise FitError(f"parquet: none of the columns of {path} holds lists, which are the steps of a sequence: {kinds}.")


def _read_steps(path: Path, table: pa.Table, names: tuple[str, ...], tokens: bool) -> tuple[np.ndarray, np.ndarray]:
    read = {name: _read_list(name, table.column(name), tokens) for name in names}
    first, (_, lengths) = next(iter(read.items()))
    for name, (_, others) in read.items():
        if (others != lengths).any():
            row = int(np.flatnonzero(others != lengths)[0])
            raise FitError(
                f"parquet: the list columns of a row have the same number of steps: in row {row}, {first} has "
                f"{lengths[row]} and {name} has {others[row]}."
            )
    if not lengths.sum():
        raise FitError(f"parquet: {path}: the list column {first} is empty: no row has a single step.")
    values = [v for v, _ in read.values()]
    if tokens:
        if len(values) > 1:
            raise FitError(f"parquet: --embed takes one column of tokens, got {', '.join(names)}.")
        return values[0], lengths
    return np.concatenate(values, axis=1), lengths


def _read_list(name: str, column: pa.ChunkedArray, tokens: bool) -> tuple[np.ndarray, np.ndarray]:
    """A list column -> (its steps [N, I], or tokens [N], and the length of each row)."""
    if not is_list(column.type):
        raise FitError(f"parquet: the column {name!r} must hold lists of steps, got {column.type}.")
    if column.null_count:
        row = _first_null(column)
        raise FitError(f"parquet: row {row} of the column {name!r} is null. An empty list is a sequence of no steps.")
    rows = _one_array(column)
    lengths = _list_lengths(rows)
    flat = rows.flatten()
    if tokens:
        return _read_tokens(name, flat, lengths), lengths
    return _read_numbers(name, flat, lengths), lengths


def _list_lengths(lists: pa.Array) -> np.ndarray:
    return pc.call_function("list_value_length", [lists]).to_numpy(zero_copy_only=False).astype(np.int64)


def _first_null(values: Any) -> int:
    return int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _read_tokens(name: str, flat: pa.Array, lengths: np.ndarray) -> np.ndarray:
    _refuse_null(name, flat, lengths)
    if pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    if pa.types.is_integer(flat.type):
        return flat.to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
        return np.asarray(flat.to_pylist(), dtype=np.str_)
    raise FitError(f"parquet: --embed takes steps that are whole numbers or text; {name!r} holds {flat.type}.")


def _read_numbers(name: str, flat: pa.Array, lengths: np.ndarray) -> np.ndarray:
    _refuse_null(name, flat, lengths)
    width = 1
    if is_list(flat.type):
        width = _one_width(name, flat, lengths)
        steps, flat = lengths, flat.flatten()
        _refuse_null(name, flat, steps * width)
    if pa.types.is_null(flat.type):
        return np.zeros((0, width), np.float32)
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
        hint = " Text and ids need --embed WIDTH." if pa.types.is_string(flat.type) else ""
        raise FitError(f"parquet: steps are numbers or lists of numbers; {name!r} holds {flat.type}.{hint}")
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        row, step = row_of_step(lengths, int(bad[0]))
        raise FitError(
            f"parquet: steps must be finite numbers; row {row}, step {step} of {name!r} is {values[bad[0]].tolist()}. "
            f"Fill in or drop such rows."
        )
    return values


def _one_width(name: str, steps: pa.Array, lengths: np.ndarray) -> int:
    widths = _list_lengths(steps)
    if not len(widths):
        return 1
    odd = np.flatnonzero(widths != widths[0])
    if len(odd):
        row, step = row_of_step(lengths, int(odd[0]))
        raise FitError(
            f"parquet: every step of {name!r} has the same width: the first has {widths[0]} numbers, row {row}, "
            f"step {step} has {widths[odd[0]]}."
        )
    if widths[0] == 0:
        raise FitError(f"parquet: the steps of {name!r} are lists of no numbers.")
    return int(widths[0])


def _refuse_null(name: str, flat: pa.Array, lengths: np.ndarray) -> None:
    if flat.null_count and not pa.types.is_null(flat.type):
        step = _first_null(flat)
        row, _ = row_of_step(lengths, step)
        raise FitError(f"parquet: row {row} of {name!r} holds a null. Fill in or drop such rows.")


def _read_labels(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name)
    if column.null_count:
        row = _first_null(column)
        raise FitError(f"parquet: row {row} of the label column {name!r} is null.")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return column.to_numpy().astype(np.int64)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.asarray(column.to_pylist(), dtype=np.str_)
    raise FitError(f"parquet: labels are class numbers or text; the column {name!r} holds {column.type}.")


def read_parts(table: pa.Table, name: str) -> np.ndarray:
    words = [str(word).lower() for word in table.column(name).to_pylist()]
    for row, word in enumerate(words):
        if word not in PARTS:
            raise FitError(
                f"parquet: the split column {name!r} says train, validation or test; row {row} says {word!r}."
            )
    return np.asarray([PARTS[word] for word in words])
