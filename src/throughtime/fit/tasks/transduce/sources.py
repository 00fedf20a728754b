"""What the options name -> pairs of token sequences as they are written. The only place that knows the kinds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from throughtime.fit.data.parquet import is_list, read_columns, read_parts, read_schema
from throughtime.fit.data.text import read_lines
from throughtime.fit.data.vocabulary import cut
from throughtime.fit.errors import FitError
from throughtime.fit.options import PairOptions

__all__ = ["Sequences", "absolute_source", "read_sequences", "source_name"]

KINDS = ("parquet", "tsv", "lines")


@dataclass(frozen=True)
class Sequences:
    """Sources and their targets, or None where those are not known. parts: [R], "" where the data does not say."""

    sources: list[list[str]]
    targets: list[list[str]] | None
    parts: np.ndarray

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray) -> "Sequences":
        """The given rows, in the given order."""
        targets = None if self.targets is None else [self.targets[row] for row in rows]
        return Sequences([self.sources[row] for row in rows], targets, self.parts[rows])


def read_sequences(options: PairOptions, need_targets: bool) -> Sequences:
    """Without `need_targets` the data may lack the targets."""
    kind, paths = _split_source(options.data)
    sources, targets, parts = _READERS[kind](paths, options, need_targets)
    for what, column in (("source", sources), ("target", targets or [])):
        for row, tokens in enumerate(column):
            if not tokens:
                raise FitError(f"{kind}: every {what} has at least one token; that of row {row} is empty.")
    return Sequences(sources, targets, np.full(len(sources), "") if parts is None else parts)


def source_name(source: str) -> str:
    return _split_source(source)[1][0].resolve().stem


def absolute_source(source: str) -> str:
    kind, paths = _split_source(source)
    return f"{kind}:{','.join(str(path.resolve()) for path in paths)}"


Read = tuple[list[list[str]], list[list[str]] | None, np.ndarray | None]


def _split_source(source: str) -> tuple[str, list[Path]]:
    kind, _, rest = source.partition(":")
    paths = [Path(path.strip()).expanduser() for path in rest.split(",")] if kind == "lines" else [Path(rest)]
    if kind not in KINDS or not rest or len(paths) > 2:
        raise FitError(
            f"--data of pairs is 'parquet:FILE', 'tsv:FILE' or 'lines:SOURCE_FILE,TARGET_FILE', got {source!r}."
        )
    return kind, [path.expanduser() for path in paths]


def _read_tsv(paths: list[Path], options: PairOptions, need_targets: bool) -> Read:
    rows = [line.split("\t") for line in read_lines("tsv", paths[0])]
    wanted = 1 if not need_targets and len(rows[0]) == 1 else 2
    for row, fields in enumerate(rows):
        if len(fields) != wanted:
            raise FitError(
                f"tsv: each line is a source, a tab and its target; line {row + 1} of {paths[0]} has {len(fields)} "
                f"field{'s' * (len(fields) != 1)}."
            )
    columns = [[cut(fields[side], options.tokens) for fields in rows] for side in range(wanted)]
    return columns[0], columns[1] if wanted == 2 else None, None


def _read_parallel(paths: list[Path], options: PairOptions, need_targets: bool) -> Read:
    if need_targets and len(paths) == 1:
        raise FitError(f"lines: there are two files, lines:SOURCE_FILE,TARGET_FILE; got only {paths[0]}.")
    texts = [read_lines("lines", path) for path in paths]
    if len({len(lines) for lines in texts}) > 1:
        (a, b), (m, n) = paths, map(len, texts)
        raise FitError(f"lines: each source has its target in the same line: {a} has {m:,} lines, {b} has {n:,}.")
    sources, *targets = ([cut(line, options.tokens) for line in lines] for lines in texts)
    return sources, targets[0] if targets else None, None


def _read_parquet(paths: list[Path], options: PairOptions, need_targets: bool) -> Read:
    (path,) = paths
    there = read_schema(path).names
    names = [options.source_column]
    if need_targets or options.target_column in there:
        names.append(options.target_column)
    split = options.split_column if need_targets or options.split_column in there else None
    table = read_columns(path, [*names, *([split] if split else [])])
    columns = [_read_column(name, table.column(name), options.tokens) for name in names]
    parts = read_parts(table, split) if split else None
    return columns[0], columns[1] if len(columns) > 1 else None, parts


def _read_column(name: str, column: pa.ChunkedArray, tokens: str) -> list[list[str]]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values: list[Any] = column.to_pylist()
    for row, value in enumerate(values):
        if value is None or (isinstance(value, list) and None in value):
            raise FitError(f"parquet: row {row} of the column {name!r} is null or holds one, which is no sequence.")
    if is_list(column.type):
        return [[str(token) for token in value] for value in values]
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [cut(value, tokens) for value in values]
    raise FitError(f"parquet: sequences are text or lists of tokens; the column {name!r} holds {column.type}.")


_READERS = {"parquet": _read_parquet, "tsv": _read_tsv, "lines": _read_parallel}
