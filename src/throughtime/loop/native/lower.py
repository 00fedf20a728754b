"""LoopPlan -> Program, forward and backward: where every value lies, and in which pass or product it is made."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from throughtime._errors import BackendError
from throughtime.capture.graph import ROWS, Node
from throughtime.loop.native.affine import fuse_products
from throughtime.loop.native.assemble import Assembly, Want
from throughtime.loop.native.program import Buffer, Immediate, Program
from throughtime.loop.native.resolve import SHAPE_OPERATORS, is_rounded
from throughtime.loop.native.rewrites import rewrite
from throughtime.loop.native.staging import Stages, split_backward, split_forward
from throughtime.loop.native.views import View, contiguous, feature_shape, view_as, view_through
from throughtime.plan.loop_plan import LoopPlan

__all__ = ["Lowered", "lower"]


@dataclass(frozen=True)
class Lowered:
    """The programs of a plan. `inference` keeps nothing for a backward pass; the others are None without kernels."""

    inference: Program
    training: Program | None
    backward: Program | None
    element: torch.dtype
    reductions: tuple["Reduction", ...]
    row_reductions: tuple["Reduction", ...]
    """The same of values of rows, after the steps."""
    by_row: dict[str, Program]
    """Over the rows: "before" the steps, what depends on row consts and consts only; "after" them, what waited."""
    staged: dict[str, tuple[Program, Program]]
    """For few rows: by direction, the two programs that do the same in this order, one over pairs and one by steps."""
    no_backward: str | None = None
    """Why the forward pass alone runs natively."""

    def dtype(self, buffer: Buffer) -> torch.dtype:
        """Of what lies in a buffer."""
        return torch.int64 if buffer.integer else self.element


@dataclass(frozen=True)
class Reduction:
    """A node that contracts pairs, with the pair buffers (or views of them) that its operands are read from.

    widths: of these buffers. vectors: of each pair, whose products it sums. rounded: the operands are, to bfloat16.
    """

    node: Node
    operands: tuple[View, ...]
    widths: tuple[int, ...]
    vectors: int
    rounded: bool = False


def lower(plan: LoopPlan) -> Lowered:
    """Raises BackendError with the name of the first operator that the native backend has not."""
    element = _element(plan)
    inference = _lower_forward(plan, False)
    before = _lower_before(plan)
    try:
        training = _lower_forward(plan, True)
        backward, reductions = _lower_backward(plan)
        after, row_reductions = _lower_after(plan)
        _check_reductions([*reductions, *row_reductions])
    except BackendError as error:
        staged = _staged({"inference": inference})
        return Lowered(inference.whole, None, None, element, (), (), before, staged, str(error))
    staged = _staged({"inference": inference, "training": training, "backward": backward})
    contracted = tuple(reductions), tuple(row_reductions)
    return Lowered(inference.whole, training.whole, backward.whole, element, *contracted, {**before, **after}, staged)


def _staged(forms: dict[str, "_Forms"]) -> dict[str, tuple[Program, Program]]:
    return {name: form.staged for name, form in forms.items() if form.staged is not None}


def _check_reductions(reductions: Sequence[Reduction]) -> None:
    """Raises BackendError for a sum over rows that has no kernel."""
    for reduction in reductions:
        op = reduction.node.op
        summed = op in ("sum", "embedding_dense_backward") and all(v.is_whole for v in reduction.operands)
        if op != "outer" and not summed:
            raise BackendError(f"the gradient sums over rows through '{op}' ({reduction.node}), which has no kernel")


@dataclass(frozen=True)
class _Forms:
    """A direction as one program, and as two."""

    whole: Program
    staged: tuple[Program, Program] | None


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
    stages = split_forward(fused, _bound_to_rows(assembly), wanted)
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
    sums = [assembly.want(name, f"row_sums:{name}", "row") for name in plan.row_sums]
    wants += [replace(want, add=True) for want in sums]
    reductions, operand_wants = _contractions(assembly, plan, plan.reductions)
    wants += operand_wants
    fused = fuse_products(nodes, plan.values, _wanted([*d_xs, *wants]))
    whole = assembly.program(fused, [*d_xs, *wants], reverse=True)
    stages = split_backward(fused, _bound_to_rows(assembly), _wanted(wants), _wanted(d_xs))
    staged = None if stages is None else _staged_backward(assembly, stages, d_xs, wants)
    return _Forms(whole, staged), reductions


def _lower_before(plan: LoopPlan) -> dict[str, Program]:
    """What depends on row consts and consts only, for each row."""
    nodes = [node for node in plan.once if ROWS in node.shape]
    if not nodes:
        return {}
    assembly = _assembly_over_rows(plan, ())
    later = [node for stage in (*plan.forward, *plan.backward) for node in stage.nodes] + [
        *plan.reductions,
        *plan.after,
    ]
    read = {operand for node in later for operand in node.operands} | {*plan.ys, *plan.next_carry, *_gradients(plan)}
    read |= {
        _stands_at(plan, name, _vectors(plan, node), ()).base
        for node in plan.reductions
        for name in _row_operands(plan, node)
    }
    wants = [assembly.want(node.name, f"rows:{node.name}", "pair") for node in nodes if node.name in read]
    return {"before": _over_rows(assembly, plan, nodes, wants)}


def _lower_after(plan: LoopPlan) -> tuple[dict[str, Program], list[Reduction]]:
    """What is computed on sums over the steps of each row, and what contracts the rows then."""
    nodes = [node for node in plan.after if ROWS in node.shape]
    contracted = [node for node in plan.after if ROWS not in node.shape and _row_operands(plan, node)]
    if not nodes and not contracted:
        return {}, []
    assembly = _assembly_over_rows(plan, [node for node in plan.once if ROWS in node.shape])
    for name in plan.row_sums:
        assembly.read(name, f"row_sums:{name}", "pair")
    own = {node.name for node in nodes}
    wants = [assembly.want(name, f"after:{name}", "pair") for name in dict.fromkeys(plan.d_row_consts) if name in own]
    reductions, operand_wants = _contractions(assembly, plan, contracted)
    program = _over_rows(assembly, plan, nodes, [*wants, *operand_wants])
    return {"after": program}, reductions


def _assembly_over_rows(plan: LoopPlan, known: Sequence[Node]) -> Assembly:
    assembly = Assembly(plan.values)
    _read_consts(assembly, plan)
    for k, row_const in enumerate(plan.of_kind("row_const")):
        assembly.read(row_const.name, f"row_consts:{k}", "pair")
    for node in known:
        assembly.read(node.name, f"rows:{node.name}", "pair")
    return assembly


def _over_rows(assembly: Assembly, plan: LoopPlan, nodes: Sequence[Node], wants: Sequence[Want]) -> Program:
    fused = fuse_products(rewrite(nodes, plan.values), plan.values, _wanted(wants))
    return replace(assembly.program(fused, wants, reverse=False), over="pairs")


def _bound_to_rows(assembly: Assembly) -> list[str]:
    """What lies by rows, where a program over pairs does not find it."""
    by_row = {name for name, buffer in assembly.buffers.items() if buffer.kind in ("row", "previous")}
    return [name for name, view in assembly.sources.items() if view.base in by_row]


def _staged_backward(
    assembly: Assembly, stages: Stages, d_xs: list[Want], wants: list[Want]
) -> tuple[Program, Program]:
    """The gradient of an input that becomes a state is the state's own, which the step before overwrites."""
    crossed, staged_wants = _cross(assembly, stages)
    by_row = set(_bound_to_rows(assembly))
    at_once = [want for want in d_xs if want.value in by_row]
    later = [want for want in d_xs if want not in at_once]
    steps = assembly.program(stages.steps, [*at_once, *wants, *staged_wants], reverse=True)
    return steps, replace(crossed.program(stages.pairs, later, reverse=True), over="pairs")


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


def _wanted(wants: Sequence[Want]) -> set[str]:
    return {want.value for want in wants if isinstance(want.value, str)}


def _read_consts(assembly: Assembly, plan: LoopPlan) -> None:
    for value in (*plan.of_kind("const"), *(node for node in plan.once if ROWS not in node.shape)):
        assembly.read(value.name, f"const:{value.name}", "const")


def _read_inputs(assembly: Assembly, plan: LoopPlan) -> None:
    for k, x in enumerate(plan.of_kind("xs")):
        assembly.read(x.name, f"xs:{k}", "pair")
    for k, noise in enumerate(plan.of_kind("noise")):
        assembly.read(noise.name, f"noise:{k}", "pair", local=True)
    for k, row_const in enumerate(plan.of_kind("row_const")):
        assembly.read(row_const.name, f"row_consts:{k}", "row")
    for node in plan.once:
        if ROWS in node.shape:
            assembly.read(node.name, f"rows:{node.name}", "row")


def _read_kept(assembly: Assembly, plan: LoopPlan) -> None:
    """What the forward pass left: outputs, saved values, states before and after each step.

    A state that another state or an output becomes is known by that one's trace, if not by its own.
    """
    for name in plan.saved:
        assembly.read(name, f"saved:{name}", "pair")
    carries = plan.of_kind("carry")
    for i in plan.traced:
        assembly.read(carries[i].name, f"previous:{i}", "previous")
    for i, carry in enumerate(carries):
        if plan.next_carry[i] == carry.name:
            assembly.read(carry.name, f"still:{i}", "row")
    after = [(f"ys:{k}", name) for k, name in enumerate(plan.ys)]
    after += [(f"trace:{i}", plan.next_carry[i]) for i in plan.traced if plan.next_carry[i] not in plan.ys]
    for buffer, name in after:
        if name not in assembly.sources:
            assembly.read(name, buffer, "pair")


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


def _contractions(assembly: Assembly, plan: LoopPlan, nodes: Sequence[Node]) -> tuple[list[Reduction], list[Want]]:
    """Where they read: what is stored by pairs is read there, anything else is stored by pairs of a chunk."""
    stored = {name for name, view in assembly.sources.items() if assembly.buffers[view.base].kind == "pair"}
    wants: dict[str, Want] = {}
    buffers = dict(assembly.buffers)

    def place(name: str, vectors: int) -> View:
        view = _stands_at(plan, name, vectors, stored)
        base = view.base
        if base in stored:
            return replace(view, base=assembly.sources[base].base)
        want = wants.setdefault(base, assembly.want(base, f"operand:{base}", "pair", local=True))
        buffers[want.buffer.name] = want.buffer
        return replace(view, base=want.buffer.name)

    found = []
    for node in nodes:
        names, vectors = _row_operands(plan, node), _vectors(plan, node)
        views = tuple(place(name, vectors) for name in names)
        widths = tuple(buffers[view.base].width for view in views)
        found.append(Reduction(node, views, widths, vectors, all(is_rounded(name, plan.values) for name in names)))
    return found, list(wants.values())


def _vectors(plan: LoopPlan, node: Node) -> int:
    """Of a row, whose products a contraction sums."""
    return math.prod(plan.shape_of(_row_operands(plan, node)[0])[1:-1]) if node.op == "outer" else 1


def _stands_at(plan: LoopPlan, name: str, vectors: int, stored: Collection[str]) -> View:
    return (_seen(plan, name, stored) if vectors > 1 else None) or _whole(plan, name)


def _seen(plan: LoopPlan, name: str, stored: Collection[str], shaped: bool = False) -> View | None:
    """A value's elements in order (`shaped` as it is), as a view of what is stored or computed: windows overlap, and
    would take more room than what they look at. None where the elements must be moved first.
    """
    value = plan.values[name]
    if (
        name in stored
        or not isinstance(value, Node)
        or value.op not in SHAPE_OPERATORS
        or not _row_operands(plan, value)
    ):
        return _whole(plan, name)
    inner = _seen(plan, value.operands[0], stored, shaped or value.op != "view")
    if inner is None or value.op != "view":
        return None if inner is None else view_through(value, inner, True)
    return view_as(inner, feature_shape(value.shape)) or (None if shaped else inner)


def _whole(plan: LoopPlan, name: str) -> View:
    return contiguous(name, feature_shape(plan.shape_of(name)))


def _row_operands(plan: LoopPlan, node: Node) -> list[str]:
    return [name for name in node.operands if ROWS in plan.values[name].shape]


def _gradients(plan: LoopPlan) -> list[str]:
    fields = (plan.d_consts, plan.d_row_consts, plan.d_xs, plan.d_carry)
    return [name for names in fields for name in names if name]
