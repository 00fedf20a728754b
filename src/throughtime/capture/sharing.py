"""Is the gradient of what the rows share a sum over rows? The loop adds it up by row and step, so it must be.

Any gradient that PyTorch derives is: after its sum over the rows it passes through linear operators only. A custom
autograd function may do otherwise (clip the gradient by its norm over the batch, say), and is refused. Where the
operators do not show it (the gradient of a matrix exponential), it is tried with numbers.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from throughtime._errors import CaptureError
from throughtime.capture.graph import ROWS, Input, Node, Ref, StepPair
from throughtime.capture.interpret import run_node

__all__ = ["check_shared_gradients"]

Env = dict[str, Tensor]

_KEEPS_SUMS = {
    *("neg", "view", "permute", "expand", "slice", "sum", "to_dtype", "tril", "triu", "flip", "cat", "add", "sub"),
    "cumsum",
}
_LINEAR_IN_ONE = {"mul", "mm", "bmm", "index_select", "index_add", "index_copy"}


def check_shared_gradients(pair: StepPair, consts: Mapping[str, Tensor]) -> None:
    """Raises a CaptureError. `consts`: by name, as they are now."""
    values = {
        v.name: v for v in (*pair.forward.inputs, *pair.backward_inputs, *pair.forward.nodes, *pair.backward_nodes)
    }
    sums: list[Node] = []
    after: list[Node] = []
    summed: set[str] = set()
    doubtful: Node | None = None
    for node in pair.backward_nodes:
        from_sums = [name for name in node.operands if name in summed]
        if from_sums:
            _refuse_rows(node)
            after.append(node)
            doubtful = doubtful or (None if _is_linear(node, from_sums, values) else node)
        elif ROWS not in node.shape and any(ROWS in values[name].shape for name in node.operands):
            sums.append(node)
        else:
            continue
        summed.add(node.name)
    if doubtful is not None:
        _try_with_numbers(pair, consts, sums, after, doubtful)


def _refuse_rows(node: Node) -> None:
    if ROWS in node.shape:
        raise CaptureError(
            f"the gradient of one row is made from those of the other rows (at {node.op}), as a custom autograd "
            "function may do, but each row runs on its own. Leave what concerns the whole batch to code after the call."
        )


def _is_linear(node: Node, from_sums: Sequence[str], values: Mapping[str, Input | Node]) -> bool:
    if node.op in _KEEPS_SUMS:
        return all(_is_sum_or_zero(a, from_sums, values) for a in node.args)
    if node.op in _LINEAR_IN_ONE:
        return len(from_sums) == 1
    if node.op == "div":
        return list(from_sums) == [getattr(node.args[0], "name", None)]
    if node.op == "where":
        condition, *choices = node.args
        return condition.name not in from_sums and all(_is_sum_or_zero(c, from_sums, values) for c in choices)
    return False


def _is_sum_or_zero(argument: object, from_sums: Sequence[str], values: Mapping[str, Input | Node]) -> bool:
    if not isinstance(argument, Ref):
        return argument == 0
    value = values[argument.name]
    zero = isinstance(value, Node) and value.op == "full" and value.attributes["value"] == 0
    return zero or argument.name in from_sums


def _try_with_numbers(
    pair: StepPair, consts: Mapping[str, Tensor], sums: Sequence[Node], after: Sequence[Node], doubtful: Node
) -> None:
    """f(a + b) = f(a) + f(b) for random a and b, or the gradient is no sum."""
    known = _without_rows(pair, consts)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {n.name: torch.randn([int(size) for size in n.shape], generator=generator, dtype=n.dtype) for n in sums}
        for _ in range(2)
    )
    both = {name: a[name] + b[name] for name in a}
    of_a, of_b, of_both = (_run(after, {**known, **drawn}) for drawn in (a, b, both))
    for name in pair.d_consts:
        if name not in of_both:
            continue
        expected = of_a[name] + of_b[name]
        if not torch.allclose(of_both[name], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise CaptureError(
                f"the gradient of a tensor that the rows share goes through {doubtful.op} after its sum over the "
                "rows, so it is not the sum of what each row and step gives, as a custom autograd function may do. "
                "Apply that to the gradient after the call instead."
            )


def _without_rows(pair: StepPair, consts: Mapping[str, Tensor]) -> Env:
    """All that depends on consts only."""
    env = {name: value.detach().cpu() for name, value in consts.items()}
    nodes = (*pair.forward.nodes, *pair.backward_nodes)
    return _run([n for n in nodes if ROWS not in n.shape], env)


def _run(nodes: Sequence[Node], env: Env) -> Env:
    """Those that can be computed from what is there."""
    found = dict(env)
    for node in nodes:
        if all(name in found for name in node.operands):
            found[node.name] = run_node(node, found, 0)
    return found
