"""Small data of known contents."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def ragged_rows(count: int, seed: int = 0) -> dict[str, list]:
    """Sequences of 0 to 12 numbers; the label says whether their sum is positive."""
    random = np.random.default_rng(seed)
    steps = [random.standard_normal(n).round(3).tolist() for n in random.integers(0, 13, count)]
    return {"steps": steps, "label": ["up" if sum(row) > 0 else "down" for row in steps]}
