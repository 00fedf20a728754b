"""A directory that holds one run: what it was asked, what it learned, how it went.

config.yaml              the options; `throughtime fit --config` reads them again
data.json                classes or vocabularies, a fingerprint of the data
model.safetensors        the weights of the best epoch
checkpoint.safetensors   all that --resume needs
metrics.csv, tensorboard/, report.html
results.json             written last: the run is finished
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from throughtime.fit.checkpoint import load_tensors, save_tensors
from throughtime.fit.errors import FitError
from throughtime.fit.files import is_unfinished, write_text
from throughtime.fit.options import Options, TrainingOptions
from throughtime.fit.tasks import TASKS

__all__ = ["RunDirectory", "default_directory"]


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def holds_run(self) -> bool:
        return self._config.is_file()

    def check_free_for(self, options: Options, resume: bool) -> None:
        """Refuses another run's directory, and this run's own unless it is to be resumed."""
        if not self._holds_anything():
            return
        if not self.holds_run:
            raise FitError(f"{self.path} exists and is not the directory of a run. Choose another with --run.")
        differing = _differences(_flat(self.read_options()), _flat(options))
        lines = "".join(f"\n  {name}: there {old!r}, asked for {new!r}" for name, (old, new) in differing.items())
        if set(differing) - _may_change(self.read_options().training, options.training):
            raise FitError(
                f"{self.path} holds a run with another configuration:{lines}\nChoose another directory with --run."
            )
        if not resume:
            state = "a finished run" if self.read_results() else "an unfinished run"
            raise FitError(
                f"{self.path} holds {state} with this configuration{' but for' * bool(lines)}{lines}.\n"
                f"Say --resume to go on with it (a finished run is shown again), or choose another with --run."
            )

    def begin(self, options: Options, encoding: Any, fingerprint: str) -> None:
        """Writes what the run is about; on resuming, checks that the data is still the same."""
        if self._data.is_file():
            known = json.loads(self._data.read_text())["fingerprint"]
            if known != fingerprint:
                raise FitError(
                    f"the data has changed since the run in {self.path} began ({options.data.data}, fingerprint "
                    f"{known}, now {fingerprint}), so it cannot be resumed. Choose another directory with --run."
                )
        self._results.unlink(missing_ok=True)
        data = {"fingerprint": fingerprint, **dataclasses.asdict(encoding)}
        write_text(self._config, yaml.safe_dump(_flat(options), sort_keys=False))
        write_text(self._data, json.dumps(data, indent=1))

    def read_options(self) -> Options:
        if not self.holds_run:
            raise FitError(f"{self.path} is not the directory of a run: there is no {self._config.name} in it.")
        try:
            return Options.from_flat(yaml.safe_load(self._config.read_text()))
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise FitError(f"{self._config} is not a whole configuration: {error!r}.") from error

    def read_encoding(self) -> Any:
        if not self._model.is_file():
            raise FitError(f"{self.path} holds no trained model yet. Finish the run with: throughtime fit --resume")
        known = json.loads(self._data.read_text())
        del known["fingerprint"]
        return TASKS[self.read_options().task].read_encoding(known)

    def write_model(self, model: nn.Module, epoch: int) -> None:
        save_tensors(self._model, model.state_dict(), {"epoch": str(epoch)})

    def read_model(self) -> tuple[nn.Module, int]:
        """The saved model, and the epoch it is from."""
        options, encoding = self.read_options(), self.read_encoding()
        weights, metadata = load_tensors(self._model)
        model = TASKS[options.task].build_model(options, encoding)
        model.load_state_dict(weights)
        return model.eval(), int(metadata["epoch"])

    def write_results(self, results: dict[str, Any]) -> None:
        write_text(self._results, json.dumps(results, indent=1))

    def read_results(self) -> dict[str, Any] | None:
        return json.loads(self._results.read_text()) if self._results.is_file() else None

    def _holds_anything(self) -> bool:
        """Whether there is more in it than what a killed run had begun to write."""
        return self.path.exists() and any(not is_unfinished(path) for path in self.path.iterdir())

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def _data(self) -> Path:
        return self.path / "data.json"

    @property
    def _model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def _results(self) -> Path:
        return self.path / "results.json"


def default_directory(options: Options) -> Path:
    cell = options.model.cell.replace(":", ".")
    source = TASKS[options.task].source_name(options.data.data)
    task = "" if options.task == "classify" else f"{options.task}-"
    return Path("runs") / f"{source}-{task}{cell}-{options.model.units}"


def _flat(options: Options) -> dict[str, Any]:
    """The options as the command line knows them, the source readable from everywhere."""
    flat = options.flat()
    return {**flat, "data": TASKS[options.task].absolute_source(flat["data"])}


def _may_change(old: TrainingOptions, new: TrainingOptions) -> set[str]:
    """The settings that may differ on resuming: they change how far a run goes, not its way."""
    further = new.epochs > old.epochs and old.schedule == "constant"
    return {"checkpoint_every", "epochs"} if further else {"checkpoint_every"}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = ["task"] if old["task"] != new["task"] else list(new)
    return {name: (old[name], new[name]) for name in names if old[name] != new[name]}
