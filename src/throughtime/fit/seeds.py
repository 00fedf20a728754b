"""A key of whole numbers -> every generator that a cell may draw from, put where the key says."""

import random

import numpy as np
import torch

__all__ = ["seed_noise"]


def seed_noise(*key: int) -> None:
    words = np.random.SeedSequence(key).generate_state(2, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[0] % 2**32))
    seed = int(words[1] >> 1)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # torch.manual_seed would note a stack trace for each device that may yet appear: 1 ms a step
        torch.default_generator.manual_seed(seed)
