"""The house rules of DESIGN.md section 4 and STYLE.md, read off the source with `ast`.

A rule is a function: a file of the library -> a sentence for each place that breaks it.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "throughtime"

LEAVES = {"_eager", "_errors", "_nested", "_types", "_state", "_sequence"}
BACKENDS = {"loop.native", "loop.portable", "loop.reference"}
# Each layer, and the layers it may import. A layer may import itself.
LAYERS: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "cells": LEAVES,
    "capture": LEAVES,
    "plan": LEAVES | {"capture"},
    "loop": LEAVES | {"capture", "plan"},
    "_autograd": LEAVES | {"capture", "plan", "loop"},
    "_cache": LEAVES,
    "_limits": LEAVES,
    "_no_steps": LEAVES | {"capture"},
    "_pipeline": LEAVES | {"capture", "plan", "loop", "_autograd", "_cache", "_limits", "_no_steps"},
    # The memory policies, which are values, stand in plan.
    "_unroll": LEAVES | {"plan", "_pipeline"},
    "_module": LEAVES | {"plan", "_unroll"},
    # What a source reads again stands in a file, as what a loop spills.
    "_source": LEAVES | {"loop"},
    "_loss": LEAVES | {"plan", "_pipeline", "_unroll", "_source"},
    "_truncated": LEAVES | {"plan", "_unroll"},
    "_explain": LEAVES | {"capture", "plan", "_pipeline", "_unroll"},
    "decode": LEAVES | {"cells", "plan", "_pipeline"},
    "fit": set(),
    "__main__": {"fit"},
    "__init__": LEAVES
    | {"cells", "plan", "_pipeline", "_unroll", "_module", "_loss", "_truncated", "_explain", "decode"},
}
SENTENCES = {
    "cells": "cells know nothing of time, graphs or kernels: they import the leaves only",
    "capture": "capture is for any cell: it imports the leaves only (isinstance of a cell of ours ends that)",
    "plan": "a plan is pure data: it imports capture and the leaves, never the loop that runs it",
    "_unroll": "unrolling reaches the loop through the pipeline only, and knows nothing of decoding",
    "decode": "decoding reaches the loop through the pipeline only, and knows nothing of unrolling",
    "fit": "fit uses the public API of the library only",
    "__init__": "the package's door shows the library, and pulls in no optional package",
}
# What one place alone may know.
ONLY_IN = {
    "torch.utils._pytree": ("_nested", "torch's pytree is known to _nested only; use its flatten and map_leaves"),
    "torch.fx": ("capture", "torch.fx stays inside capture/; the others see StepGraph"),
    "llvmlite": ("loop.native", "llvmlite stays inside loop/native/"),
    "ctypes": ("loop.native", "ctypes stays inside loop/native/"),
    "lightning": ("fit", "training belongs to fit/"),
    "pytorch_lightning": ("fit", "training belongs to fit/"),
    "pyarrow": ("fit", "training data belong to fit/"),
    "sklearn": ("fit", "training data belong to fit/"),
}
READS_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


@dataclass(frozen=True)
class Import:
    """One imported name, dotted, from the root of its package."""

    target: str
    line: int
    inside_function: bool


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parse(path)))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    functions = [node for node in nodes(path) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lazy = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, id(node) in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            found += [Import(f"{package}.{alias.name}", node.lineno, id(node) in lazy) for alias in node.names]
    return tuple(found)


@cache
def library() -> tuple[Path, ...]:
    return tuple(sorted(ROOT.rglob("*.py")))


@cache
def own_modules() -> set[str]:
    return {name_of(path) for path in library()} | set(LAYERS)


def name_of(path: Path) -> str:
    """`loop/native/jit.py` -> `loop.native.jit`; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def layer_of(name: str) -> str:
    return name.split(".")[0]


def own(target: str) -> str | None:
    """`throughtime._nested.leaves` -> `_nested`; the public package itself is `__init__`; None for other packages."""
    head, _, rest = target.partition(".")
    if head != "throughtime":
        return None
    while rest and rest not in own_modules():
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def dotted(node: ast.AST) -> str:
    """`torch.fx.Graph` of a chain of attributes; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if not isinstance(node, ast.Attribute):
        return ""
    head = dotted(node.value)
    return f"{head}.{node.attr}" if head else ""


def is_in(target: str, package: str) -> bool:
    return f"{target}.".startswith(f"{package}.")


def at(path: Path, line: int) -> str:
    return f"src/throughtime/{path.relative_to(ROOT).as_posix()}:{line}"


def imports_point_downwards(path: Path) -> Iterator[str]:
    layer = layer_of(name_of(path))
    if layer not in LAYERS:
        yield f"{at(path, 1)}: {layer} has no layer yet: give it a line in LAYERS, as low as its imports let it stand"
        return
    rule = SENTENCES.get(layer, f"{layer} imports only {', '.join(sorted(LAYERS[layer])) or 'nothing of ours'}")
    for found in imports(path):
        target = own(found.target)
        if target is None or layer_of(target) in LAYERS[layer] | {layer}:
            continue
        public = not any(part.startswith("_") for part in found.target.split("."))
        if not (public and layer in ("fit", "__main__")):
            yield f"{at(path, found.line)} imports throughtime.{target}: {rule}"


def imports_are_absolute(path: Path) -> Iterator[str]:
    for found in imports(path):
        if found.target.startswith("."):
            yield f"{at(path, found.line)}: write absolute imports, `from throughtime…`"


def one_backend_knows_nothing_of_another(path: Path) -> Iterator[str]:
    for mine in BACKENDS:
        for found in imports(path) if is_in(name_of(path), mine) else ():
            for other in BACKENDS - {mine}:
                if is_in(own(found.target) or "", other):
                    yield f"{at(path, found.line)}: one backend never imports another ({mine} -> {other})"


def no_lazy_import_of_our_own_code(path: Path) -> Iterator[str]:
    for found in imports(path):
        if found.inside_function and own(found.target) is not None:
            yield f"{at(path, found.line)}: no import of our own code inside a function; move it to the top"


def one_place_alone_knows_it(path: Path) -> Iterator[str]:
    used = [(found.target, found.line) for found in imports(path)]
    used += [(dotted(node), node.lineno) for node in nodes(path) if isinstance(node, ast.Attribute)]
    for package, (place, rule) in ONLY_IN.items():
        for target, line in used:
            if is_in(target, package) and not is_in(name_of(path), place):
                yield f"{at(path, line)} uses {target}: {rule}"


def nothing_runs_code_from_data(path: Path) -> Iterator[str]:
    for found in imports(path):
        if found.target.split(".")[0] in READS_PICKLES:
            yield f"{at(path, found.line)}: no pickle is ever read; use safetensors or JSON"
    for node in nodes(path):
        if isinstance(node, ast.Call):
            if (called := dotted(node.func)) in ("eval", "exec", "compile"):
                yield f"{at(path, node.lineno)}: no {called} in the library"
            if any(k.arg == "weights_only" and not getattr(k.value, "value", False) for k in node.keywords):
                yield f"{at(path, node.lineno)}: torch.load(weights_only=False) runs what a file says"


def files_and_functions_are_short(path: Path) -> Iterator[str]:
    lines = len(path.read_text().splitlines())
    if lines > 600:
        yield f"{at(path, 1)} has {lines} lines: a file has at most 600, most have fewer than 400"
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_table(node):
            length = (node.end_lineno or node.lineno) - body_start(node) + 1
            if length > 100:
                yield f"{at(path, node.lineno)}: {node.name} has {length} lines; a function has at most 100"


def is_table(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A docstring and one literal that is returned."""
    body = [node for node in function.body if not isinstance(node, ast.Expr)]
    returned = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    return isinstance(returned, (ast.Dict, ast.List, ast.Tuple))


def body_start(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The first line after the docstring, which may be as long as the meaning needs."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return (first.end_lineno or first.lineno) + 1 if is_docstring else function.lineno


def modules_say_what_they_offer(path: Path) -> Iterator[str]:
    body = parse(path).body
    offered = [node for node in body if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__"]
    definitions = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public = [node.name for node in definitions if not node.name.startswith("_")]
    if public and not offered and path.name != "__main__.py":
        yield f"{at(path, 1)}: a module with public names ({', '.join(public[:3])}) has __all__"
    for node in offered:
        names = ast.literal_eval(node.value)
        if names != sorted(set(names), key=sort_key):
            yield f"{at(path, node.lineno)}: __all__ is sorted, each name once"


def sort_key(name: str) -> tuple[int, list[tuple[int, int, str]]]:
    """CONSTANTS, then Classes, then functions, each by the alphabet and numbers by size: ruff's RUF022."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    parts = re.findall(r"\d+|\D+", name)
    return kind, [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def the_first_line_is_the_arrow(path: Path) -> Iterator[str]:
    if not ast.get_docstring(parse(path)):
        yield f"{at(path, 1)}: a module's first line says what comes in and what goes out"


def no_exception_is_swallowed(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{at(path, node.lineno)}: say which exceptions"
            if len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                yield f"{at(path, node.lineno)}: an exception is swallowed"


RULES = [
    imports_point_downwards,
    imports_are_absolute,
    one_backend_knows_nothing_of_another,
    no_lazy_import_of_our_own_code,
    one_place_alone_knows_it,
    nothing_runs_code_from_data,
    files_and_functions_are_short,
    modules_say_what_they_offer,
    the_first_line_is_the_arrow,
    no_exception_is_swallowed,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[Path], Iterator[str]]) -> None:
    broken = [sentence for path in library() for sentence in rule(path)]
    assert not broken, "\n".join(["", *broken])


def test_every_rule_can_be_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One module that breaks them all, and where they say so."""
    (tmp_path / "loop" / "native").mkdir(parents=True)
    path = tmp_path / "loop" / "native" / "bad.py"
    body = "\n".join(["    x = 1"] * 700)
    path.write_text(
        "import pickle\nimport sklearn.datasets\nfrom throughtime.cells import LSTMCell\nfrom . import jit\n"
        "from throughtime.loop.portable import PortableLoop\n__all__ = ['b', 'A']\n"
        "def load(f):\n    import throughtime._unroll\n    try:\n        eval(f)\n    except:\n        pass\n"
        f"    torch.load(f, weights_only=False)\n    torch.utils._pytree.tree_map(f)\n{body}\n"
    )
    own_modules()
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    said = {rule.__name__: list(rule(path)) for rule in RULES}
    assert [name for name, sentences in said.items() if not sentences] == []
    sentences = "\n".join(sentence for found in said.values() for sentence in found)
    for part in (
        "bad.py:3 imports throughtime.cells: loop imports only",
        "bad.py:8 imports throughtime._unroll: loop imports only",
        "bad.py:5: one backend never imports another (loop.native -> loop.portable)",
        "bad.py:8: no import of our own code inside a function",
        "bad.py:14 uses torch.utils._pytree.tree_map: torch's pytree",
        "bad.py:2 uses sklearn.datasets: training data belong to fit/",
        "bad.py:10: no eval",
        "bad.py:13: torch.load(weights_only=False)",
        "load has 708 lines",
        "bad.py:11: an exception is swallowed",
    ):
        assert part in sentences, part
