"""Steps and their gradients as text -> StepPair. For cases that are clearer written than captured."""

import ast
import re
from collections.abc import Sequence
from typing import Any

import torch

from throughtime.capture.graph import Input, Node, Ref, Shape, StepGraph, StepPair

__all__ = ["pair_of", "step_of"]

_INPUT = re.compile(r"(?P<kind>\w+) (?P<name>\w+) \[(?P<shape>.*?)\]( (?P<dtype>\w+))?")
_NODE = re.compile(r"(?P<name>\w+) = (?P<op>\w+)\((?P<args>.*)\) \[(?P<shape>.*?)\]( (?P<dtype>\w+))?")


def step_of(inputs: str, nodes: str, ys: str, next_carry: str) -> StepGraph:
    """Lines `kind name [shape] dtype` and `name = op(a, b, key=value) [shape] dtype`; float64 if nothing is said."""
    return StepGraph(_inputs(inputs), _nodes(nodes), tuple(ys.split()), tuple(next_carry.split()))


def pair_of(step: StepGraph, cotangents: str = "", nodes: str = "", **gradients: str) -> StepPair:
    """gradients: `d_consts="gw -"` and so on; `-` for none, and none where nothing is said.

    Without cotangents: one for each carry, which nothing reads.
    """
    cotangents = cotangents or "\n".join(f"d_next_carry d_{c.name} [B, 4]" for c in step.of_kind("carry"))
    fields = {}
    for kind, field in (("const", "d_consts"), ("row_const", "d_row_consts"), ("xs", "d_xs"), ("carry", "d_carry")):
        words = gradients.get(field, " ".join("-" for _ in step.of_kind(kind))).split()
        fields[field] = tuple(None if word == "-" else word for word in words)
    return StepPair(step, _inputs(cotangents), _nodes(nodes), **fields)


def _inputs(text: str) -> tuple[Input, ...]:
    found = []
    for line in _lines(text):
        match = _match(_INPUT, line)
        found.append(Input(match["name"], match["kind"], match["name"], _shape(match["shape"]), _dtype(match["dtype"])))
    return tuple(found)


def _nodes(text: str) -> tuple[Node, ...]:
    return tuple(_node(line) for line in _lines(text))


def _node(line: str) -> Node:
    match = _match(_NODE, line)
    call = ast.parse(f"f({match['args']})", mode="eval").body
    assert isinstance(call, ast.Call)
    args = tuple(_value(arg) for arg in call.args)
    kwargs = tuple((word.arg, _value(word.value)) for word in call.keywords)
    return Node(match["name"], match["op"], args, kwargs, _shape(match["shape"]), _dtype(match["dtype"]))


def _value(tree: ast.expr) -> Any:
    if isinstance(tree, ast.Name):
        return "B" if tree.id == "B" else Ref(tree.id)
    if isinstance(tree, (ast.List, ast.Tuple)):
        return tuple(_value(part) for part in tree.elts)
    return ast.literal_eval(tree)


def _shape(text: str) -> Shape:
    return tuple("B" if word.strip() == "B" else int(word) for word in text.split(",") if word.strip())


def _dtype(word: str | None) -> torch.dtype:
    return getattr(torch, word) if word else torch.float64


def _lines(text: str) -> Sequence[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _match(pattern: re.Pattern[str], line: str) -> re.Match[str]:
    match = pattern.fullmatch(line)
    assert match is not None, line
    return match
