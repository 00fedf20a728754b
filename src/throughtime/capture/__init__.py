"""cell -> StepGraph -> StepPair. The only folder that knows how PyTorch is traced."""

from throughtime.capture.graph import ROWS, Input, InputKind, Node, Ref, Shape, StepGraph, StepPair
from throughtime.capture.mentions import Mentions, find_mentions
from throughtime.capture.recording import StepCall
from throughtime.capture.refusals import mistakes_told
from throughtime.capture.signature import check_hooks, signature
from throughtime.capture.trace import Const, StepTrace, trace_step

__all__ = [
    "ROWS",
    "Const",
    "Input",
    "InputKind",
    "Mentions",
    "Node",
    "Ref",
    "Shape",
    "StepCall",
    "StepGraph",
    "StepPair",
    "StepTrace",
    "check_hooks",
    "find_mentions",
    "mistakes_told",
    "signature",
    "trace_step",
]
