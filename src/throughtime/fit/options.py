"""What a run is asked to do, as values. The names and their descriptions are the command line's."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from throughtime.fit.numbers import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = [
    "DEFAULTS",
    "GROUPS",
    "DataOptions",
    "LanguageModelOptions",
    "ModelOptions",
    "Options",
    "PairOptions",
    "TextOptions",
    "TrainingOptions",
    "TransducerOptions",
]

Split = Literal["characters", "words"]


@dataclass(frozen=True)
class DataOptions:
    """Data.

    Args:
        data: where the sequences come from: "digits" (built in: 8 rows of 8 pixels), "idx:DIRECTORY" (the files of
            MNIST, gzipped or not: rows of pixels as steps) or "parquet:FILE" (one row a sequence).
        columns: Parquet: the list columns that hold the steps, with commas in between; several are put side by side
            as features. By default the only list column there is.
        label: Parquet: the column of labels, class numbers from 0 or text.
        split_column: Parquet: a column that says "train", "validation" or "test".
        classes: the number of classes, by default as many as the training part shows.
        validation: the share of the training sequences held out to choose the best epoch, where the data has no
            validation part of its own; 0 keeps the last epoch.
        test: the share of the sequences held out for the final accuracy, where the data has no test part of its own.
        split_seed: fixes which sequences are held out.
    """

    data: str = "digits"
    columns: str | None = None
    label: str = "label"
    split_column: str | None = None
    classes: PositiveInt | None = None
    validation: NonNegativeFloat = 0.1
    test: PositiveFloat = 0.2
    split_seed: NonNegativeInt = 0


@dataclass(frozen=True)
class ModelOptions:
    """Model.

    Args:
        cell: a cell of throughtime by name (BasicRNNCell, LSTMCell, GRUCell, ...), or a class of your own as
            "module:Class", made as Class(units), with input_size= where it takes that.
        cell_options: further arguments of the cell, as --cell_options.use_peepholes true.
        units: the width of each layer's state.
        layers: how many cells stand on top of each other.
        dropout: the share of the inputs of each layer, and of the final state, that is left out in training.
        embed: steps are token ids (or words), looked up in a learned table of this width; 0 for steps of numbers.
        backend: how the loop over time is run.
    """

    cell: str = "BasicRNNCell"
    cell_options: dict[str, Any] = field(default_factory=dict)
    units: PositiveInt = 150
    layers: PositiveInt = 1
    dropout: NonNegativeFloat = 0.0
    embed: NonNegativeInt = 0
    backend: Literal["auto", "native", "portable"] = "auto"


@dataclass(frozen=True)
class PairOptions:
    """Data: pairs of sequences, a source and its target.

    Args:
        data: where the pairs come from: "parquet:FILE" (two columns), "tsv:FILE" (lines of a source, a tab and its
            target) or "lines:SOURCE_FILE,TARGET_FILE" (two text files, line by line).
        source_column: Parquet: the column of sources, text or lists of tokens.
        target_column: Parquet: the column of targets, text or lists of tokens.
        split_column: Parquet: a column that says "train", "validation" or "test".
        tokens: what text is cut into: "characters", or "words" at white space.
        vocabulary: keep only so many tokens of each side, the most frequent; the others are unknown. 0 keeps all.
        validation: the share of the training pairs held out to choose the best epoch, where the data has no validation
            part of its own; 0 keeps the last epoch.
        test: the share of the pairs held out for the final measures, where the data has no test part of its own.
        split_seed: fixes which pairs are held out.
    """

    data: str
    source_column: str = "source"
    target_column: str = "target"
    split_column: str | None = None
    tokens: Split = "characters"
    vocabulary: NonNegativeInt = 0
    validation: NonNegativeFloat = 0.1
    test: PositiveFloat = 0.1
    split_seed: NonNegativeInt = 0


@dataclass(frozen=True)
class TransducerOptions:
    """Model: an encoder in both directions, and a decoder that attends to it.

    Args:
        cell: a cell of throughtime by name (GRUCell, LSTMCell, ...), or a class of your own as "module:Class".
        cell_options: further arguments of the cell, as --cell_options.use_peepholes true.
        units: the width of the decoder's state, and of both directions of the encoder together: an even number.
        layers: how many cells stand on top of each other, in the encoder and in the decoder.
        dropout: the share of the inputs of encoder and decoder, and of what is read out, that is left out in training.
        embed: the width of the learned tables of tokens.
        attention: how the decoder compares itself with the places of the source: "luong" by an inner product,
            "bahdanau" by a small network.
        beam: the width of the beam search that decodes; 1 takes the most probable token at each step.
        length_penalty: the power of (5 + length) / 6 that the scores of a beam are divided by.
        backend: how the loops over time are run.
    """

    cell: str = "GRUCell"
    cell_options: dict[str, Any] = field(default_factory=dict)
    units: PositiveInt = 128
    layers: PositiveInt = 1
    dropout: NonNegativeFloat = 0.0
    embed: PositiveInt = 32
    attention: Literal["luong", "bahdanau"] = "luong"
    beam: PositiveInt = 1
    length_penalty: NonNegativeFloat = 0.0
    backend: Literal["auto", "native", "portable"] = "auto"


@dataclass(frozen=True)
class TextOptions:
    """Data: running text.

    Args:
        data: where the text comes from: "text:FILE", or "text:DIRECTORY" for all .txt files in it.
        tokens: what the text is cut into: "characters", or "words" at white space.
        vocabulary: keep only so many tokens, the most frequent; the others are unknown. 0 keeps all.
        window: steps of truncated back-propagation: the state is carried from window to window, gradients end where
            one begins.
        validation: the share of the text held out to choose the best epoch, before its end; 0 keeps the last epoch.
        test: the share of the text, at its end, held out for the final perplexity.
    """

    data: str
    tokens: Split = "characters"
    vocabulary: NonNegativeInt = 0
    window: PositiveInt = 64
    validation: NonNegativeFloat = 0.05
    test: PositiveFloat = 0.05


@dataclass(frozen=True)
class LanguageModelOptions:
    """Model: layers of cells, and a linear layer that says the next token.

    Args:
        cell: a cell of throughtime by name (GRUCell, LSTMCell, ...), or a class of your own as "module:Class".
        cell_options: further arguments of the cell, as --cell_options.use_peepholes true.
        units: the width of each layer's state.
        layers: how many cells stand on top of each other.
        dropout: the share of the inputs of each layer, and of what is read out, that is left out in training.
        embed: the width of the learned table of tokens.
        backend: how the loop over time is run.
    """

    cell: str = "GRUCell"
    cell_options: dict[str, Any] = field(default_factory=dict)
    units: PositiveInt = 256
    layers: PositiveInt = 1
    dropout: NonNegativeFloat = 0.0
    embed: PositiveInt = 64
    backend: Literal["auto", "native", "portable"] = "auto"


@dataclass(frozen=True)
class TrainingOptions:
    """Training.

    Args:
        epochs: how often the training sequences are gone through.
        batch: sequences (of a text: places that are read at once) in a batch, over all processes together.
        learning_rate: of Adam.
        schedule: "cosine" lets the learning rate fall to nothing over the epochs, as half a wave.
        clip: the largest norm of the gradients, to which longer ones are cut; 0 leaves them alone.
        seed: fixes the first weights, the order of the batches and the noise of dropout.
        checkpoint_every: also save what --resume needs after each so many batches; 0 saves after each epoch only.
        accelerator: the device, as Lightning names them.
        precision: of the arithmetic, as Lightning names them.
    """

    epochs: PositiveInt = 60
    batch: PositiveInt = 150
    learning_rate: PositiveFloat = 0.001
    schedule: Literal["constant", "cosine"] = "constant"
    clip: NonNegativeFloat = 0.0
    seed: NonNegativeInt = 0
    checkpoint_every: NonNegativeInt = 0
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"


GROUPS: dict[str, tuple[Any, Any, Any]] = {
    "classify": (DataOptions, ModelOptions, TrainingOptions),
    "transduce": (PairOptions, TransducerOptions, TrainingOptions),
    "language-model": (TextOptions, LanguageModelOptions, TrainingOptions),
}
# Where a task's defaults are not those of its groups.
DEFAULTS: dict[str, dict[str, Any]] = {
    "classify": {},
    "transduce": {"epochs": 10, "batch": 100, "learning_rate": 0.002, "schedule": "cosine", "clip": 1.0},
    "language-model": {"epochs": 10, "batch": 32, "learning_rate": 0.002, "schedule": "cosine", "clip": 1.0},
}


@dataclass(frozen=True)
class Options:
    """Everything that the result of a run depends on; `task` says of which kinds data and model are."""

    data: Any
    model: Any
    training: TrainingOptions
    task: str = "classify"

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> "Options":
        """From the names of the command line to values; KeyError where one is missing."""
        task = values.get("task", "classify")
        groups = [kind(**{f.name: values[f.name] for f in fields(kind)}) for kind in GROUPS[task]]
        return Options(*groups, task=task)

    def flat(self) -> dict[str, Any]:
        """The names of the command line, and their values."""
        groups = (asdict(group) for group in (self.data, self.model, self.training))
        return {"task": self.task} | {name: value for group in groups for name, value in group.items()}
