"""The training command: data -> model -> training -> report. Uses only the public API of the library.

| station | file |
|---|---|
| what was asked for | `options.py` |
| sequences from `digits`, `idx:` or `parquet:`, in parts and in batches | `data/` |
| cells, layers, a linear layer on the final state | `model.py` |
| one run of training, killed and resumed at will | `training.py`, `keeper.py`, `checkpoint.py`, `run_directory.py` |
| the page about it | `report/` |
| `throughtime fit`, `evaluate`, `predict` | `commands.py`, `command_line.py` |
"""
