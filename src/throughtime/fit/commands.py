"""fit, evaluate, predict, generate: what each command does, given options. The same for every task."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from throughtime.fit.data.output import check_output
from throughtime.fit.data.parts import Data
from throughtime.fit.errors import FitError
from throughtime.fit.files import write_text
from throughtime.fit.keeper import RunKeeper
from throughtime.fit.options import Options
from throughtime.fit.progress import EpochLines, PassBar
from throughtime.fit.report.page import Finished
from throughtime.fit.run_directory import RunDirectory, default_directory
from throughtime.fit.tasks import TASKS
from throughtime.fit.tasks.language_model.continuation import Continuation, continue_text
from throughtime.fit.tasks.task import Task
from throughtime.fit.training import Processes, make_trainer

__all__ = ["evaluate", "fit", "generate", "predict"]


def fit(options: Options, run: Path | None, resume: bool) -> None:
    """Train, measure the saved model on the test part, write the report."""
    task = TASKS[options.task]
    processes = Processes.from_environment()
    console = Console(quiet=not processes.first, soft_wrap=True)
    directory = RunDirectory(run or default_directory(options))
    if processes.first:
        directory.check_free_for(options, resume)
    finished = directory.read_results() if resume else None
    if finished and finished["epochs"] == options.training.epochs:
        console.print(f"{directory.path} holds this run, finished. To train again, name another directory with --run.")
        _tell_end(console, task, directory, finished)
        return
    data = task.read_data(options)
    model = task.build_model(options, data.encoding)
    resumed = resume and directory.checkpoint.is_file()
    _tell_start(console, task, options, data, model, directory, resumed)
    if processes.first:
        directory.begin(options, data.encoding, data.fingerprint)
    keeper = RunKeeper(directory, options.training.checkpoint_every)
    _train(console, task, options, data, model, keeper, processes, resumed)
    if processes.first:
        _finish(console, options, data, directory, keeper)


def evaluate(run: Path, source: str | None, part: str, beam: int | None) -> None:
    """Print how well the saved model does."""
    console = Console(soft_wrap=True)
    saved = _open(run, beam)
    said = saved.ask(console, saved.read(source, part, need_answers=True))
    name = saved.task.source_name(source or saved.options.data.data)
    console.print(f"{name}, {part} part, weights of epoch {saved.epoch}", highlight=False)
    saved.task.tell(console, said, in_detail=True)


def predict(run: Path, source: str | None, part: str, out: Path, beam: int | None) -> None:
    """Write what the saved model says of each sequence."""
    check_output(out)
    console = Console(soft_wrap=True)
    saved = _open(run, beam)
    rows = saved.read(source, part, need_answers=False)
    said = saved.ask(console, rows)
    saved.task.write(out, said)
    console.print(f"{len(rows):,} predictions in {out}", highlight=False)
    if said.has_answers:
        saved.task.tell(console, said, in_detail=False)


def generate(run: Path, wanted: Continuation) -> None:
    """Print the prompt and what the saved language model says after it, as it says it."""
    saved = _open(run, None)
    if saved.options.task != "language-model":
        raise FitError(
            f"{run} holds a run of the task {saved.options.task!r}; text is continued by a language model. Train one "
            f"with: throughtime fit --task language-model"
        )
    for piece in continue_text(saved.model, saved.encoding, wanted):
        print(piece, end="", flush=True, file=sys.stdout)
    print()


def write_report(directory: RunDirectory, run: Finished) -> None:
    write_text(directory.report, TASKS[run.options.task].report(run))


@dataclass(frozen=True)
class _Saved:
    """A run that has a trained model."""

    task: Task
    options: Options
    encoding: Any
    model: Any
    epoch: int

    def read(self, source: str | None, part: str, need_answers: bool) -> Any:
        """A part of the run's own data, or of another source."""
        chosen = replace(self.options, data=replace(self.options.data, data=source or self.options.data.data))
        if part == "all":
            return self.task.read_all(chosen, self.encoding, need_answers)
        rows = self.task.read_data(chosen, self.encoding).part(part)
        if not len(rows):
            raise FitError(f"{chosen.data.data} has no sequences in its {part} part.")
        return rows

    def ask(self, console: Console, part: Any) -> Any:
        """What the model says of all rows of a part."""
        trainer = make_trainer(self.options.training, [PassBar(console, "reading sequences")])
        training = self.task.make_training(self.model, self.options, self.encoding)
        passes = trainer.predict(training, self.task.make_batches(part, self.options))
        return self.task.collect(part, passes, self.options, self.encoding)


def _open(run: Path, beam: int | None) -> _Saved:
    directory = RunDirectory(run)
    options = directory.read_options()
    if beam is not None:
        if options.task != "transduce":
            raise FitError(f"--beam is for runs of the task 'transduce'; {run} holds one of the task {options.task!r}.")
        options = replace(options, model=replace(options.model, beam=beam))
    return _Saved(TASKS[options.task], options, directory.read_encoding(), *directory.read_model())


def _train(
    console: Console,
    task: Task,
    options: Options,
    data: Data,
    model: Any,
    keeper: RunKeeper,
    processes: Processes,
    resumed: bool,
) -> None:
    training = task.make_training(model, options, data.encoding)
    trainer = make_trainer(options.training, [keeper, EpochLines(console, keeper)], processes)
    share = {"rank": processes.rank, "world": processes.world}
    trainer.fit(
        training,
        task.make_batches(data.train, options, options.training.seed, **share),
        task.make_batches(data.validation, options, **share) if len(data.validation) else None,
        ckpt_path=str(keeper.run.checkpoint) if resumed else None,
    )


def _finish(console: Console, options: Options, data: Data, directory: RunDirectory, keeper: RunKeeper) -> None:
    task = TASKS[options.task]
    model, epoch = directory.read_model()
    parameters = sum(p.numel() for p in model.parameters())
    said = _Saved(task, options, data.encoding, model, epoch).ask(console, data.test)
    results = {
        "epochs": options.training.epochs,
        "best_epoch": epoch,
        **task.results(said),
        "seconds": sum(row["seconds"] for row in keeper.history),
        "parameters": parameters,
    }
    # Lightning leaves a model in the precision it worked in, so the report reads it anew.
    model, _ = directory.read_model()
    source = task.source_name(options.data.data)
    write_report(directory, Finished(options, source, data, model, keeper.history, said, results))
    directory.write_results(results)
    _tell_end(console, task, directory, results)


def _tell_start(
    console: Console, task: Task, options: Options, data: Data, model: Any, directory: RunDirectory, resumed: bool
) -> None:
    lines = task.introduce(options, data)
    lines["model"] += f": {sum(p.numel() for p in model.parameters()):,} parameters"
    lines["training"] = _training_in_words(options)
    lines["run"] = f"{directory.path}{' (resumed from its last checkpoint)' if resumed else ''}"
    for name, line in lines.items():
        console.print(f"[bold]{name:<10}[/bold]{line}", highlight=False)
    console.print()


def _training_in_words(options: Options) -> str:
    training = options.training
    words = f"{training.epochs} epochs, batches of {training.batch}, Adam {training.learning_rate:g}"
    words += " with a cosine schedule" if training.schedule == "cosine" else ""
    words += f", dropout {options.model.dropout:g}" if options.model.dropout else ""
    return words + (f", gradients clipped at {training.clip:g}" if training.clip else "")


def _tell_end(console: Console, task: Task, directory: RunDirectory, results: dict[str, Any]) -> None:
    figure, remark = task.headline(results)
    console.print()
    console.print(
        f"[bold green]{figure}[/bold green]   {remark}, with the weights of epoch {results['best_epoch']}; "
        f"trained for {results['seconds']:.0f} s",
        highlight=False,
    )
    console.print(f"[bold]report[/bold]        {directory.report}", highlight=False)
