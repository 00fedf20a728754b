"""The name of a task -> what it adds to a run. One directory a task; `task.py` says what each has to bring."""

from throughtime.fit.tasks.classify.task import Classify
from throughtime.fit.tasks.language_model.task import LanguageModelling
from throughtime.fit.tasks.task import Task
from throughtime.fit.tasks.transduce.task import Transduce

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {task.name: task for task in (Classify(), Transduce(), LanguageModelling())}
