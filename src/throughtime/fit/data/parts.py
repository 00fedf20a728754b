"""Data in three parts, as every task reads it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["PARTS", "Data", "fingerprint_of"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Encoded data in three parts, what a model must know about it, and a fingerprint of all of it."""

    train: Any
    validation: Any
    test: Any
    encoding: Any
    fingerprint: str

    def part(self, name: str) -> Any:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def fingerprint_of(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
