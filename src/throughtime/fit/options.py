"""What a run is asked to do, as values. The names and their descriptions are the command line's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    NonNegativeInt = int
    PositiveInt = int
    NonNegativeFloat = float
    PositiveFloat = float
else:  # the same, checked where the command line is read
    from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["DataOptions", "ModelOptions", "Options", "TrainingOptions"]


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
class TrainingOptions:
    """Training.

    Args:
        epochs: how often the training sequences are gone through.
        batch: sequences in a batch, over all processes together.
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


@dataclass(frozen=True)
class Options:
    """Everything that the result of a run depends on."""

    data: DataOptions
    model: ModelOptions
    training: TrainingOptions

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> "Options":
        """From the names of the command line to values; KeyError where one is missing."""

        def group(kind: Any) -> Any:
            return kind(**{f.name: values[f.name] for f in fields(kind)})

        return Options(group(DataOptions), group(ModelOptions), group(TrainingOptions))
