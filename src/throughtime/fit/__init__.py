"""The training command: data -> model -> training -> report. Uses only the public API of the library.

What is learned is a task; a run is the same for all of them.

| station | file |
|---|---|
| what was asked for | `options.py` |
| what a task brings: its sources, model, loss, measures and page | `tasks/task.py` |
| a class for a sequence, a sequence for a sequence, how a text goes on | `tasks/*/`, each with its `task.py` |
| tables, vocabularies and batches, files of data in and out | `data/` |
| cells by name | `cells.py` |
| one run of training, killed and resumed at will | `training.py`, `keeper.py`, `checkpoint.py`, `run_directory.py` |
| the page about it | `report/` |
| `throughtime fit`, `evaluate`, `predict`, `generate` | `commands.py`, `command_line.py` |
"""
