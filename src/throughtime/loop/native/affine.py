"""Row nodes -> row nodes in which products and the sums around them are one operator, `affine`.

Before: add(add(mm(x, w), mm(h, u)), b)
After:  affine(b, x, w, h, u)                     b + x @ w + h @ u, in this order: what is free of the state first

A product of its own becomes affine(None, x, w). Addends that are neither products nor the bias stay additions.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from throughtime.capture.graph import ROWS, Input, Node, Ref

__all__ = ["fuse_products"]


def fuse_products(nodes: Sequence[Node], values: Mapping[str, Input | Node], wanted: Iterable[str]) -> list[Node]:
    """wanted: names that must stay values of their own."""
    fusion = _Fusion(nodes, values, set(wanted))
    return fusion.run()


class _Fusion:
    def __init__(self, nodes: Sequence[Node], values: Mapping[str, Input | Node], wanted: set[str]) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.values, self.wanted = values, wanted
        self.uses = Counter(operand for node in nodes for operand in node.operands)
        self.late = _depends_on_state(nodes, values)

    def run(self) -> list[Node]:
        absorbed: set[str] = set()
        replaced: dict[str, list[Node]] = {}
        for node in reversed(list(self.nodes.values())):
            if node.name in absorbed:
                continue
            if node.op == "mm":
                replaced[node.name] = [self._affine(node.name, None, [node], node)]
            elif node.op == "add" and (new := self._sum(node, absorbed)):
                replaced[node.name] = new
        return [n for node in self.nodes.values() if node.name not in absorbed for n in replaced.get(node.name, [node])]

    def _sum(self, root: Node, absorbed: set[str]) -> list[Node] | None:
        inner: set[str] = set()
        addends = [addend for operand in root.operands for addend in self._addends(operand, root, inner)]
        if len(addends) != len(inner) + 2 or len(root.operands) != 2:
            return None  # an addend that is a number
        products = [self.nodes[a] for a in addends if self._is_product(a, root)]
        if not products:
            return None
        biases = [a for a in addends if self._is_bias(a, root)]
        rest = list(addends)
        for taken in (*(p.name for p in products), *biases[:1]):
            rest.remove(taken)
        absorbed |= inner | {p.name for p in products}
        return self._chain(root, biases[0] if biases else None, products, rest)

    def _chain(self, root: Node, bias: str | None, products: list[Node], rest: list[str]) -> list[Node]:
        name = root.name if not rest else f"{root.name}.products"
        chain = [self._affine(name, bias, products, root)]
        for i, addend in enumerate(rest):
            last = i == len(rest) - 1
            following = root.name if last else f"{root.name}.{i}"
            chain.append(Node(following, "add", (Ref(chain[-1].name), Ref(addend)), (), root.shape, root.dtype))
        return chain

    def _affine(self, name: str, bias: str | None, products: list[Node], like: Node) -> Node:
        ordered = sorted(products, key=lambda p: p.operands[0] in self.late)
        args = tuple(arg for product in ordered for arg in product.args)
        return replace(like, name=name, op="affine", args=(None if bias is None else Ref(bias), *args), kwargs=())

    def _addends(self, name: str, root: Node, inner: set[str]) -> list[str]:
        node = self.nodes.get(name)
        own = node is not None and node.op == "add" and node.shape == root.shape and len(node.operands) == 2
        if not own or self.uses[name] > 1 or name in self.wanted:
            return [name]
        inner.add(name)
        assert node is not None
        return [addend for operand in node.operands for addend in self._addends(operand, root, inner)]

    def _is_product(self, name: str, root: Node) -> bool:
        node = self.nodes.get(name)
        own = node is not None and node.op == "mm" and node.shape == root.shape
        return own and self.uses[name] == 1 and name not in self.wanted

    def _is_bias(self, name: str, root: Node) -> bool:
        value = self.values.get(name)
        if value is None or ROWS in value.shape or value.dtype != root.dtype:
            return False
        return value.shape[-1:] == root.shape[-1:] and all(n == 1 for n in value.shape[:-1])


def _depends_on_state(nodes: Sequence[Node], values: Mapping[str, Input | Node]) -> set[str]:
    found = {v.name for v in values.values() if isinstance(v, Input) and v.kind in ("carry", "d_next_carry")}
    for node in nodes:
        if not found.isdisjoint(node.operands):
            found.add(node.name)
    return found
