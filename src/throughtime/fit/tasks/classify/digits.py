"""scikit-learn's handwritten digits -> Table: 1,797 sequences of 8 rows of 8 pixels."""

import numpy as np
from sklearn.datasets import load_digits

from throughtime.fit.data.table import Table

__all__ = ["read_digits"]

BRIGHTEST = 16  # the images count set pixels in 4 x 4 blocks


def read_digits() -> Table:
    pixels, labels = load_digits(return_X_y=True)
    count, height, width = len(pixels), 8, 8
    return Table(
        values=pixels.reshape(count * height, width).astype(np.float32) / BRIGHTEST,
        lengths=np.full(count, height),
        labels=labels.astype(np.int64),
        parts=np.full(count, ""),
        rows=np.arange(count),
        picture=True,
    )
