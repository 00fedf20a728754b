"""Pairs and texts of known contents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from throughtime.fit import commands, keeper
from throughtime.fit.checkpoint import load_tensors
from throughtime.fit.commands import fit
from throughtime.fit.options import (
    DEFAULTS,
    LanguageModelOptions,
    Options,
    PairOptions,
    TextOptions,
    TrainingOptions,
    TransducerOptions,
)


def write_pairs(path: Path, count: int = 60, seed: int = 0) -> Path:
    """Lines of 2 to 6 letters, a tab, and the same letters backwards."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcd"), n)) for n in random.integers(2, 7, count)]
    path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    return path


def transducer(path: Path, model: dict | None = None, data: dict | None = None, **training: object) -> Options:
    return Options(
        PairOptions(data=f"tsv:{path}", **(data or {})),
        TransducerOptions(**{"units": 16, "embed": 8, **(model or {})}),
        TrainingOptions(**{**DEFAULTS["transduce"], "epochs": 2, "batch": 8, **training}),
        task="transduce",
    )


def language_model(path: Path, model: dict | None = None, data: dict | None = None, **training: object) -> Options:
    return Options(
        TextOptions(data=f"text:{path}", **{"window": 8, **(data or {})}),
        LanguageModelOptions(**{"units": 16, "embed": 8, **(model or {})}),
        TrainingOptions(**{**DEFAULTS["language-model"], "epochs": 2, "batch": 4, **training}),
        task="language-model",
    )


class Killed(BaseException):
    pass


def check_killed_and_resumed(options: Options, directory: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Killed in the second epoch after this batch and resumed, a run ends bit for bit like one that was not."""
    monkeypatch.setattr(commands, "write_report", lambda *_: None)
    method = keeper.RunKeeper.on_train_batch_end

    def stop(self: keeper.RunKeeper, *arguments: Any) -> None:
        method(self, *arguments)
        if len(self.history) == 1 and arguments[-1] == batch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(keeper.RunKeeper, "on_train_batch_end", stop)
        with pytest.raises(Killed):
            fit(options, directory / "killed", resume=False)
    fit(options, directory / "killed", resume=True)
    fit(options, directory / "whole", resume=False)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        (a, _), (b, _) = (load_tensors(directory / run / name) for run in ("killed", "whole"))
        assert all(torch.equal(a[key], b[key]) for key in a | b)
