"""cell -> StepGraph -> StepPair. The only folder that knows torch.fx."""

from throughtime.capture.graph import ROWS, Input, InputKind, Node, Ref, Shape, StepGraph, StepPair

__all__ = ["ROWS", "Input", "InputKind", "Node", "Ref", "Shape", "StepGraph", "StepPair"]
