"""Node -> floating-point operations for one row. An estimate for elementwise work, exact for products."""

from collections.abc import Mapping
from math import prod

from throughtime.capture.graph import ROWS, Input, Node
from throughtime.plan.operators import DIVISIONS, REDUCTIONS, TRANSCENDENTAL, VIEWS

__all__ = ["operations_of"]

_COPIES = VIEWS | {"cat", "embedding", "gather", "index_select", "index_copy", "to_dtype"}


def operations_of(node: Node, values: Mapping[str, Input | Node]) -> int:
    """A product of K and N counts 2 K N. A value without rows that contracts them counts what one pair adds to it."""
    operands = [_features(values[name]) for name in node.operands]
    if node.op == "mm":
        return 2 * prod(operands[0]) * operands[1][1]
    if node.op == "bmm":
        return 2 * prod(_features(node)) * operands[0][-1]
    if node.op == "outer":
        return 2 * prod(operands[0]) * operands[-1][-1]
    if node.op == "convolution":
        places = operands[0] if node.attributes.get("transposed") else _features(node)
        return 2 * prod(places) * prod(operands[1][1:])
    if node.op == "convolution_backward":
        return 2 * prod(operands[0]) * prod(operands[2][1:])
    if node.op in _COPIES:
        return 0
    if node.op in REDUCTIONS or ROWS not in node.shape:
        return prod(operands[0]) if operands else 0
    return prod(_features(node)) * _per_element(node.op)


def _features(value: Input | Node) -> tuple[int, ...]:
    return tuple(int(n) for n in value.shape if n != ROWS)


def _per_element(op: str) -> int:
    """Counted in additions, as in the choice of residuals."""
    if op in TRANSCENDENTAL:
        return 8
    return 3 if op in DIVISIONS else 1
