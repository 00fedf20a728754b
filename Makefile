# `make fit` and `make test` do all the set-up themselves; Python 3.11+, pip and make are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: fit test test-all lint bench bench-rivals clean

fit: $(READY)  ## train a recurrent classifier on the built-in handwritten digits
	$(BIN)/throughtime fit --data digits --resume

test: $(READY) lint  ## everything that CI runs
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: $(READY) lint  ## the slow set too
	$(BIN)/python -m pytest -q -n 2

bench: $(READY)  ## compiled loops beside PyTorch's layers and the plain loop; draws the picture
	mkdir -p docs/images
	$(BIN)/python benchmarks/loops.py --picture docs/images/loops.png

bench-rivals: .venv-rivals/.ready  ## compiled loops beside JAX/Flax and TensorFlow, in an environment of their own
	.venv-rivals/bin/python benchmarks/rivals.py

.venv-rivals/.ready: pyproject.toml constraints.txt
	test -x .venv-rivals/bin/python || $(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' jax flax tensorflow-cpu
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fit,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-rivals .pytest_cache .ruff_cache .hypothesis build dist
