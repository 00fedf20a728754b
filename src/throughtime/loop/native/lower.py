"""LoopPlan -> Program, forward and backward: where every value lies, and in which pass or product it is made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from throughtime._errors import BackendError
from throughtime.capture.graph import ROWS, Input, Node
from throughtime.loop.native.affine import fuse_products
from throughtime.loop.native.assemble import Assembly, Want
from throughtime.loop.native.program import Buffer, Immediate, Program
from throughtime.loop.native.rewrites import rewrite
from throughtime.loop.native.staging import Stages, split_backward, split_forward
from throughtime.loop.native.views import View, feature_shape
from throughtime.plan.loop_plan import LoopPlan

__all__ = ["Lowered", "lower"]


@dataclass(frozen=True)
class Lowered:
    """The programs of a plan. `inference` keeps nothing for a backward pass; backward is None without gradients."""

    inference: Program
    training: Program | None
    backward: Program | None
    element: torch.dtype
    reductions: tuple["Reduction", ...]
    staged: dict[str, tuple[Program, Program]]
    """For few rows: by direction, the two programs that do the same in this order, one over pairs and one by steps."""
    no_backward: str | None = None
    """Why the forward pass alone runs natively."""

    def dtype(self, buffer: Buffer) -> torch.dtype:
        """Of what lies in a buffer."""
        return torch.int64 if buffer.integer else self.element


@dataclass(frozen=True)
class Reduction:
    """A node that contracts rows, with the pair buffers (or views of them) that its operands are read from."""

    node: Node
    operands: tuple[View, ...]
    widths: tuple[int, ...]


def lower(plan: LoopPlan) -> Lowered:
    """Raises BackendError with the name of the first operator that the native backend has not."""
    element = _element(plan)
    _refuse_work_by_row(plan)
    inference = _lower_forward(plan, False)
    if not any(_gradients(plan)):
        return Lowered(inference.whole, None, None, element, (), _staged({"inference": inference}))
    try:
        training = _lower_forward(plan, True)
        backward, reductions = _lower_backward(plan)
        _check_reductions(reductions)
    except BackendError as error:
        return Lowered(inference.whole, None, None, element, (), _staged({"inference": inference}), str(error))
    staged = _staged({"inference": inference, "training": training, "backward": backward})
    return Lowered(inference.whole, training.whole, backward.whole, element, tuple(reductions), staged)


def _refuse_work_by_row(plan: LoopPlan) -> None:
    by_row = [node for node in (*plan.once, *plan.after) if ROWS in node.shape]
    if by_row:
        raise BackendError(
            f"'{by_row[0].op}' depends on row constants only: work for once a row, which the native backend "
            f"has not. Compute it in the cell's row_consts()"
        )


def _staged(forms: dict[str, "_Forms"]) -> dict[str, tuple[Program, Program]]:
    return {name: form.staged for name, form in forms.items() if form.staged is not None}


def _check_reductions(reductions: Sequence[Reduction]) -> None:
    """Raises BackendError for a sum over rows that has no kernel."""
    for reduction in reductions:
        op, views = reduction.node.op, reduction.operands
        if op == "outer":
            fits = all(len(v.shape) == 1 and v.strides[0] == 1 for v in views)
        else:
            fits = op in ("sum", "embedding_dense_backward") and all(v.is_whole for v in views)
        if not fits:
            raise BackendError(f"the gradient sums over rows through '{op}' ({reduction.node}), which has no kernel")


@dataclass(frozen=True)
class _Forms:
    """A direction as one program, and as two."""

    whole: Program
    staged: tuple[Program, Program] | None


def width_of(shape: tuple) -> int:
    width = 1
    for n in feature_shape(shape):
        width *= n
    return width


def _element(plan: LoopPlan) -> torch.dtype:
    dtypes = {v.dtype for v in plan.values.values()}
    unknown = dtypes - {torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool}
    if unknown:
        raise BackendError(f"the step computes in {_list(unknown)}, which the native backend has not")
    real = {dtype for dtype in dtypes if dtype.is_floating_point}
    if torch.float64 in real and len(real) > 1:
        raise BackendError(f"the step mixes {_list(real)}; the native backend keeps to one of float32 and float64")
    return torch.float64 if torch.float64 in real else torch.float32


def _list(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, dtypes)))


def _lower_forward(plan: LoopPlan, training: bool) -> _Forms:
    assembly = Assembly(plan.values)
    _read_consts(assembly, plan)
    _read_inputs(assembly, plan)
    for i, carry in enumerate(plan.of_kind("carry")):
        assembly.read(carry.name, f"carry:{i}", "row")
    nodes = rewrite([node for stage in plan.forward for node in stage.nodes], plan.values)
    wants = [assembly.want(name, f"ys:{k}", "pair") for k, name in enumerate(plan.ys)]
    if training:
        wants += [assembly.want(name, f"saved:{name}", "pair") for name in plan.saved]
        wants += [
            assembly.want(plan.next_carry[i], f"trace:{i}", "pair")
            for i in plan.traced
            if plan.next_carry[i] not in plan.ys
        ]
    wants += [assembly.want(name, f"carry:{i}", "row") for i, name in enumerate(plan.next_carry)]
    wanted = _wanted(wants)
    fused = fuse_products(nodes, plan.values, wanted)
    whole = assembly.program(fused, wants, reverse=False)
    stages = split_forward(fused, plan.values, wanted)
    if stages is None:
        return _Forms(whole, None)
    made = {node.name for node in stages.pairs}
    crossed, staged_wants = _cross(assembly, stages)
    # A state has a place per row, which a program over pairs does not know: it is stored step by step.
    first = [want for want in wants if want.value in made and want.buffer.kind == "pair"]
    pairs = replace(assembly.program(stages.pairs, [*staged_wants, *first], reverse=False), over="pairs")
    rest = [want for want in wants if want not in first]
    return _Forms(whole, (pairs, crossed.program(stages.steps, rest, reverse=False)))


def _lower_backward(plan: LoopPlan) -> tuple[_Forms, list[Reduction]]:
    assembly = Assembly(plan.values)
    _read_consts(assembly, plan)
    _read_inputs(assembly, plan)
    _read_kept(assembly, plan)
    _read_cotangents(assembly, plan)
    nodes = rewrite([node for stage in plan.backward for node in stage.nodes], plan.values)
    d_xs = [assembly.want(name, f"d_xs:{k}", "pair") for k, name in enumerate(plan.d_xs) if name]
    wants = _carry_gradients(assembly, plan)
    sums = [assembly.want(name, f"d_row_consts:{k}", "row") for k, name in enumerate(plan.d_row_consts) if name]
    wants += [replace(want, add=True) for want in sums]
    places, operand_wants = _reduction_operands(assembly, plan)
    wants += operand_wants
    fused = fuse_products(nodes, plan.values, _wanted([*d_xs, *wants]))
    whole = assembly.program(fused, [*d_xs, *wants], reverse=True)
    stages = split_backward(fused, plan.values, _wanted(wants), _wanted(d_xs))
    staged = None if stages is None else _staged_backward(assembly, stages, d_xs, wants)
    return _Forms(whole, staged), [_reduction(plan, node, places) for node in plan.reductions]


def _staged_backward(
    assembly: Assembly, stages: Stages, d_xs: list[Want], wants: list[Want]
) -> tuple[Program, Program]:
    crossed, staged_wants = _cross(assembly, stages)
    steps = assembly.program(stages.steps, [*wants, *staged_wants], reverse=True)
    return steps, replace(crossed.program(stages.pairs, d_xs, reverse=True), over="pairs")


def _cross(assembly: Assembly, stages: Stages) -> tuple[Assembly, list[Want]]:
    """What crosses is stored by pairs of the chunk: where the second program reads it, what the first must store."""
    second = assembly.copy()
    wants = []
    for node in (*stages.pairs, *stages.steps):
        second.values[node.name] = assembly.values[node.name] = node
    for name in stages.crossing:
        second.read(name, f"staged:{name}", "pair", local=True)
        wants.append(second.want(name, f"staged:{name}", "pair", local=True))
    return second, wants


def _reduction(plan: LoopPlan, node: Node, places: dict[str, View]) -> Reduction:
    names = _row_operands(plan, node)
    widths = tuple(width_of(plan.shape_of(name)) for name in names)
    return Reduction(node, tuple(places[name] for name in names), widths)


def _wanted(wants: Sequence[Want]) -> set[str]:
    return {want.value for want in wants if isinstance(want.value, str)}


def _read_consts(assembly: Assembly, plan: LoopPlan) -> None:
    for value in (*plan.of_kind("const"), *plan.once):
        assembly.read(value.name, f"const:{value.name}", "const")


def _read_inputs(assembly: Assembly, plan: LoopPlan) -> None:
    for k, x in enumerate(plan.of_kind("xs")):
        assembly.read(x.name, f"xs:{k}", "pair")
    for k, noise in enumerate(plan.of_kind("noise")):
        assembly.read(noise.name, f"noise:{k}", "pair", local=True)
    for k, row_const in enumerate(plan.of_kind("row_const")):
        assembly.read(row_const.name, f"row_consts:{k}", "row")


def _read_kept(assembly: Assembly, plan: LoopPlan) -> None:
    """What the forward pass left: outputs, saved values, states before and after each step."""
    for name in plan.saved:
        assembly.read(name, f"saved:{name}", "pair")
    carries = plan.of_kind("carry")
    for i in plan.traced:
        following = plan.next_carry[i]
        assembly.read(carries[i].name, f"previous:{i}", "previous")
        if following not in plan.ys and not isinstance(plan.values[following], Input):
            assembly.read(following, f"trace:{i}", "pair")
    for i, carry in enumerate(carries):
        if plan.next_carry[i] == carry.name:
            assembly.read(carry.name, f"still:{i}", "row")
    for k, name in enumerate(plan.ys):
        if not isinstance(plan.values[name], Input):
            assembly.read(name, f"ys:{k}", "pair")


def _read_cotangents(assembly: Assembly, plan: LoopPlan) -> None:
    for k, cotangent in enumerate(c for c in plan.cotangents if c.kind == "d_ys"):
        assembly.read(cotangent.name, f"d_ys:{k}", "pair")
    for i, cotangent in enumerate(c for c in plan.cotangents if c.kind == "d_next_carry"):
        assembly.read(cotangent.name, f"d_carry:{i}", "row")


def _carry_gradients(assembly: Assembly, plan: LoopPlan) -> list[Want]:
    """d_carry:i is the gradient of the i-th floating carry, updated in place; where there is none it becomes zero."""
    floating = [i for i, c in enumerate(plan.of_kind("carry")) if c.dtype.is_floating_point]
    wants = []
    for place, i in enumerate(floating):
        want = assembly.want(plan.of_kind("carry")[i].name, f"d_carry:{place}", "row")
        name = plan.d_carry[i]
        wants.append(replace(want, value=Immediate(0.0) if name is None else name))
    return wants


def _reduction_operands(assembly: Assembly, plan: LoopPlan) -> tuple[dict[str, View], list[Want]]:
    """Where reductions read: what is stored by pairs is read there, anything else is stored by pairs of a chunk."""
    places: dict[str, View] = {}
    wants: list[Want] = []
    for name in dict.fromkeys(name for node in plan.reductions for name in _row_operands(plan, node)):
        source = assembly.sources.get(name)
        if source is not None and assembly.buffers[source.base].kind == "pair":
            places[name] = source
            continue
        wants.append(assembly.want(name, f"operand:{name}", "pair", local=True))
        places[name] = wants[-1].to
    return places, wants


def _row_operands(plan: LoopPlan, node: Node) -> list[str]:
    return [name for name in node.operands if ROWS in plan.values[name].shape]


def _gradients(plan: LoopPlan) -> list[str]:
    fields = (plan.d_consts, plan.d_row_consts, plan.d_xs, plan.d_carry)
    return [name for names in fields for name in names if name]
