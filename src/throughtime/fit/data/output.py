"""Columns -> a Parquet or CSV file, by the ending of its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from throughtime.fit.errors import FitError
from throughtime.fit.files import replacing

__all__ = ["check_output", "write_columns"]

SUFFIXES = (".parquet", ".csv")


def check_output(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise FitError(f"--out must end in {' or '.join(SUFFIXES)}, got {path}.")


def write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            pcsv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)
