"""How fast are compiled loops beside JAX/Flax and TensorFlow? Training steps and inference of one LSTM, interleaved.

    make bench-rivals          # makes an environment of its own, .venv-rivals, and runs this there
    python benchmarks/rivals.py [--rounds 5] [--threads 2]

All run in one process on the same numbers: `flax.linen.RNN` over `OptimizedLSTMCell`, jitted with its gradient, and
TensorFlow's `tf.compat.v1.nn.dynamic_rnn` inside a `tf.function`. Both mask padding; neither skips it.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from timing import interleaved
from torch import nn

from throughtime import dynamic_rnn

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    steps: int
    inputs: int
    units: int
    ragged: bool


CASES = [
    Case("lstm-256 dense", 64, 200, 256, 256, False),
    Case("lstm-256 ragged", 64, 200, 256, 256, True),
    Case("lstm-150 dense", 150, 28, 28, 150, False),
    Case("lstm-150 ragged", 150, 28, 28, 150, True),
    Case("lstm-128 ragged", 16, 500, 64, 128, True),
]


def batch_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and lengths: max(1, floor(T u^2)), u uniform, one row of T steps."""
    random = np.random.default_rng(1)
    x = random.standard_normal((case.batch, case.steps, case.inputs), dtype=np.float32)
    lengths = np.full(case.batch, case.steps)
    if case.ragged:
        lengths[1:] = np.maximum(1, case.steps * random.random(case.batch - 1) ** 2)
    return x, lengths


def ours(case: Case, x: np.ndarray, lengths: np.ndarray) -> tuple[Run, Run]:
    """(training, inference)."""
    cell, inputs = nn.LSTMCell(case.inputs, case.units), torch.from_numpy(x)

    def train() -> None:
        cell.zero_grad()
        dynamic_rnn(cell, inputs, lengths, backend="native")[0].sum().backward()

    @torch.no_grad()
    def infer() -> None:
        dynamic_rnn(cell, inputs, lengths, backend="native")

    return train, infer


def flax(case: Case, x: np.ndarray, lengths: np.ndarray) -> tuple[Run, Run]:
    import flax.linen
    import jax

    layer: Any = flax.linen.RNN(flax.linen.OptimizedLSTMCell(case.units))
    mask = np.arange(case.steps)[None, :, None] < lengths[:, None, None]
    parameters = layer.init(jax.random.PRNGKey(0), x, seq_lengths=lengths)

    def loss(parameters: Any) -> Any:
        return (layer.apply(parameters, x, seq_lengths=lengths) * mask).sum()

    gradient = jax.jit(jax.grad(loss))
    forward = jax.jit(lambda parameters: layer.apply(parameters, x, seq_lengths=lengths))
    return lambda: jax.block_until_ready(gradient(parameters)), lambda: jax.block_until_ready(forward(parameters))


def tensorflow(case: Case, x: np.ndarray, lengths: np.ndarray) -> tuple[Run, Run]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
    tf.config.threading.set_inter_op_parallelism_threads(torch.get_num_threads())
    joined = case.inputs + case.units
    kernel = tf.Variable(tf.random.normal([joined, 4 * case.units]) * 0.05)
    bias = tf.Variable(tf.zeros([4 * case.units]))

    class BasicLSTM:
        """TensorFlow 1's cell, which newer packages no longer hold; its `dynamic_rnn` they do."""

        state_size = (case.units, case.units)
        output_size = case.units

        def zero_state(self, batch_size: Any, dtype: Any) -> Any:
            return tf.zeros([batch_size, case.units], dtype), tf.zeros([batch_size, case.units], dtype)

        def __call__(self, inputs: Any, state: Any) -> Any:
            c, h = state
            i, j, f, o = tf.split(tf.matmul(tf.concat([inputs, h], 1), kernel) + bias, 4, 1)
            c = c * tf.sigmoid(f + 1.0) + tf.sigmoid(i) * tf.tanh(j)
            h = tf.tanh(c) * tf.sigmoid(o)
            return h, (c, h)

    cell, given, counts = BasicLSTM(), tf.constant(x), tf.constant(lengths)

    @tf.function
    def infer() -> Any:
        return tf.compat.v1.nn.dynamic_rnn(cell, given, counts, dtype=tf.float32)[0]

    @tf.function
    def train() -> Any:
        outputs = tf.compat.v1.nn.dynamic_rnn(cell, given, counts, dtype=tf.float32)[0]
        return tf.gradients(tf.reduce_sum(outputs), [kernel, bias])

    return lambda: [g.numpy() for g in train()], lambda: infer().numpy()


RIVALS = {"Flax": flax, "TensorFlow": tensorflow}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    chosen = [case for case in CASES if options.only in case.name]
    lines = []
    with Progress() as bar:
        task = bar.add_task("measuring", total=len(chosen))
        for case in chosen:
            x, lengths = batch_of(case)
            pairs = {"ours": ours(case, x, lengths)} | {name: make(case, x, lengths) for name, make in RIVALS.items()}
            for place, what in enumerate(("training", "inference")):
                times = interleaved(
                    {name: pair[place] for name, pair in pairs.items()}, options.rounds, time.perf_counter
                )
                ratios = "".join(f"{times[name] * 1e3:>12.1f}{times[name] / times['ours']:>8.1f} x" for name in RIVALS)
                lines.append(f"{case.name:<18}{what:<11}{times['ours'] * 1e3:>9.1f}{ratios}")
            bar.advance(task)
    print(f"{options.threads} threads, medians of {options.rounds} interleaved rounds, milliseconds")
    print(f"{'case':<29}{'ours':>9}" + "".join(f"{name:>12}{'ratio':>10}" for name in RIVALS))
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
