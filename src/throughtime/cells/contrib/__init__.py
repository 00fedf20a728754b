"""Cells of TensorFlow's contrib, with its parameters, names and arithmetic, each checked against TensorFlow 1.15."""

from throughtime.cells.contrib.block import GRUBlockCellV2, LSTMBlockCell
from throughtime.cells.contrib.conv import Conv1DLSTMCell, Conv2DLSTMCell, Conv3DLSTMCell, ConvLSTMCell
from throughtime.cells.contrib.gated import CFNCell, IntersectionRNNCell, MinimalRNNCell, NASCell, UGRNNCell
from throughtime.cells.contrib.independent import IndRNNCell, IndyGRUCell, IndyLSTMCell, SRUCell
from throughtime.cells.contrib.layer_norm import LayerNormBasicLSTMCell, LayerNormLSTMCell
from throughtime.cells.contrib.lstm import CoupledInputForgetGateLSTMCell, GLSTMCell, WeightNormLSTMCell
from throughtime.cells.contrib.phased import PhasedLSTMCell
from throughtime.cells.contrib.wrappers import (
    EmbeddingWrapper,
    HighwayWrapper,
    InputProjectionWrapper,
    OutputProjectionWrapper,
)

__all__ = [
    "CFNCell",
    "Conv1DLSTMCell",
    "Conv2DLSTMCell",
    "Conv3DLSTMCell",
    "ConvLSTMCell",
    "CoupledInputForgetGateLSTMCell",
    "EmbeddingWrapper",
    "GLSTMCell",
    "GRUBlockCellV2",
    "HighwayWrapper",
    "IndRNNCell",
    "IndyGRUCell",
    "IndyLSTMCell",
    "InputProjectionWrapper",
    "IntersectionRNNCell",
    "LSTMBlockCell",
    "LayerNormBasicLSTMCell",
    "LayerNormLSTMCell",
    "MinimalRNNCell",
    "NASCell",
    "OutputProjectionWrapper",
    "PhasedLSTMCell",
    "SRUCell",
    "UGRNNCell",
    "WeightNormLSTMCell",
]
