"""cell -> StepGraph -> StepPair. The only folder that knows how PyTorch is traced."""

from throughtime.capture.graph import ROWS, Input, InputKind, Node, Ref, Shape, StepGraph, StepPair
from throughtime.capture.signature import signature
from throughtime.capture.trace import Const, StepTrace, trace_step

__all__ = [
    "ROWS",
    "Const",
    "Input",
    "InputKind",
    "Node",
    "Ref",
    "Shape",
    "StepGraph",
    "StepPair",
    "StepTrace",
    "signature",
    "trace_step",
]
