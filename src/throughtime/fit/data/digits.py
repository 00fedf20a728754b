"""scikit-learn's handwritten digits -> Table: 1,797 sequences of 8 rows of 8 pixels."""

import numpy as np
from sklearn.datasets import load_digits

from throughtime.fit.data.table import Table

__all__ = ["read_digits"]

BRIGHTEST = 16  # the images count set pixels in 4 x 4 blocks


def read_digits() -> Table:
    digits = load_digits()
    images = np.asarray(digits["images"], dtype=np.float32) / BRIGHTEST
    count, height, width = images.shape
    return Table(
        values=images.reshape(count * height, width),
        lengths=np.full(count, height),
        labels=np.asarray(digits["target"], dtype=np.int64),
        parts=np.full(count, ""),
        rows=np.arange(count),
        picture=True,
    )
