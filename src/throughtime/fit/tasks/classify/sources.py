"""What the options name -> Table or Data. The only place that knows the kinds of sources."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from throughtime.fit.data.parquet import Columns, read_parquet
from throughtime.fit.data.parts import PARTS, Data, fingerprint_of
from throughtime.fit.data.split import assign_parts
from throughtime.fit.data.table import Table
from throughtime.fit.errors import FitError
from throughtime.fit.options import DataOptions
from throughtime.fit.tasks.classify.digits import read_digits
from throughtime.fit.tasks.classify.encoding import Encoding, encode, learn_encoding
from throughtime.fit.tasks.classify.idx import read_idx

__all__ = ["absolute_source", "read_data", "read_table", "source_name"]


def read_data(options: DataOptions, tokens: bool, encoding: Encoding | None = None) -> Data:
    """The source, split and encoded; the encoding is learned from the training part unless it is known."""
    table = read_table(options, tokens, need_labels=True)
    parts = assign_parts(table, options.validation, options.test, options.split_seed)
    rows = {part: np.flatnonzero(parts == part) for part in PARTS}
    encoding = encoding or learn_encoding(table, rows["train"], options.classes)
    encoded = replace(encode(table, encoding), parts=parts)
    arrays = [array for array in (encoded.values, encoded.lengths, encoded.labels, encoded.parts) if array is not None]
    return Data(*(encoded.take(rows[part]) for part in PARTS), encoding=encoding, fingerprint=fingerprint_of(arrays))


def read_table(options: DataOptions, tokens: bool, need_labels: bool) -> Table:
    """Without `need_labels`, a Parquet file may lack the label column."""
    kind, path = _split_source(options.data)
    if kind == "parquet":
        return read_parquet(path, _columns(options, path, need_labels), tokens)
    if tokens:
        raise FitError(f"--embed takes steps that are tokens; {options.data} has rows of pixels as steps.")
    return read_digits() if kind == "digits" else read_idx(path)


def absolute_source(source: str) -> str:
    """The same source, readable from every directory."""
    kind, path = _split_source(source)
    return source if kind == "digits" else f"{kind}:{path.resolve()}"


def source_name(source: str) -> str:
    """A short name for run directories and titles."""
    kind, path = _split_source(source)
    return kind if kind == "digits" else path.resolve().stem


def _split_source(source: str) -> tuple[str, Path]:
    kind, _, rest = source.partition(":")
    if source == "digits" or (kind in ("idx", "parquet") and rest):
        return kind, Path(rest).expanduser()
    raise FitError(f"--data is 'digits', 'idx:DIRECTORY' or 'parquet:FILE', got {source!r}.")


def _columns(options: DataOptions, path: Path, need_labels: bool) -> Columns:
    steps = tuple(name.strip() for name in (options.columns or "").split(",") if name.strip())
    columns = Columns(steps, options.label, options.split_column)
    return columns if need_labels else columns.where_present(path)
