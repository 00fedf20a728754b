"""A directory of IDX files, and a finished run, made once."""

from pathlib import Path

import numpy as np
import pytest

from fit.made_data import write_idx
from throughtime.fit.command_line import run_command


@pytest.fixture
def idx_directory(tmp_path: Path) -> Path:
    """30 pictures of 4 x 3 to train on, zipped, and 10 to test, not."""
    directory = tmp_path / "idx"
    directory.mkdir()
    random = np.random.default_rng(0)
    for stem, count, suffix in (("train", 30, ".gz"), ("t10k", 10, "")):
        write_idx(directory / f"{stem}-images-idx3-ubyte{suffix}", random.integers(0, 256, (count, 4, 3)))
        write_idx(directory / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(count) % 3)
    return directory


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs on `digits`. Read it; copy it to change it."""
    run = tmp_path_factory.mktemp("runs") / "small"
    assert run_command(["fit", "--units", "16", "--epochs", "3", "--run", str(run)]) == 0
    return run
