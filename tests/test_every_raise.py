"""Every error in src/ has a test that matches a word only its message has.

A site is a call `SomethingError("…")`, raised there or returned to be raised. Its literal parts, with "…" for what is
filled in, are its template. It is tested when some `match=` of the tests is found in its template and in no other.

`match=` may be a literal, or a name that `parametrize` fills from literals of the decorator or a table of the module.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "throughtime"

# Still being written, and not held to the rule yet. Take a line out when its tests are there; add none.
NOT_YET = (
    "__main__.py",
    "_autograd.py",
    "capture/",
    "cells/",
    "decode/",
    "fit/",
    "loop/native/",
    "loop/reference.py",
    "plan/",
)


@dataclass(frozen=True)
class Site:
    path: str
    line: int
    template: str


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def is_error(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name.endswith(("Error", "Exit", "Interrupt"))


def template(node: ast.AST) -> str:
    """The literal parts of a message, in the order of the source."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.FormattedValue):
        return "…"
    return "".join(template(child) for child in ast.iter_child_nodes(node))


def sites(path: Path) -> Iterator[Site]:
    """All errors a file makes, and what it raises without making it from a literal."""
    relative = path.relative_to(SOURCE).as_posix()
    made = [node for node in ast.walk(parse(path)) if is_error(node)]
    raised = [node.exc for node in ast.walk(parse(path)) if isinstance(node, ast.Raise)]
    classes = [exc for exc in raised if isinstance(exc, ast.Name) and exc.id[0].isupper()]
    for node in [*made, *classes]:
        yield Site(relative, node.lineno, template(node))


def patterns(path: Path) -> Iterator[str]:
    """Every string that a test file gives to `match=`."""
    module = parse(path)
    tables = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(module):
        if isinstance(node, ast.keyword) and node.arg == "match" and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for function in functions:
        names = {
            node.value.id
            for node in ast.walk(function)
            if isinstance(node, ast.keyword) and node.arg == "match" and isinstance(node.value, ast.Name)
        }
        if names:
            for decorator in function.decorator_list:
                yield from words(decorator, tables)


def words(node: ast.AST, tables: dict[str, ast.expr]) -> Iterator[str]:
    """The strings in an expression and in the tables it names; keys and ids are names of cases, not messages."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in tables:
        yield from words(tables[node.id], {})
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from words(value, tables)
    elif not (isinstance(node, ast.keyword) and node.arg in ("ids", "id")):
        for child in ast.iter_child_nodes(node):
            yield from words(child, tables)


def untested(all_sites: list[Site], all_patterns: set[str]) -> list[Site]:
    found = dict.fromkeys(all_sites, False)
    for pattern in all_patterns:
        hits = [site for site in all_sites if re.search(pattern, site.template)]
        if len(hits) == 1:
            found[hits[0]] = True
    return [site for site, tested in found.items() if not tested]


@pytest.fixture(scope="module")
def without_test() -> list[Site]:
    all_sites = [site for path in sorted(SOURCE.rglob("*.py")) for site in sites(path)]
    all_patterns = {pattern for path in (ROOT / "tests").rglob("*.py") for pattern in patterns(path)}
    return untested(all_sites, all_patterns)


def test_every_error_has_a_test(without_test: list[Site]) -> None:
    missing = [site for site in without_test if not site.path.startswith(NOT_YET)]
    assert not missing, "no `match=` in tests/ fits these messages and no others:\n" + "\n".join(
        f"  src/throughtime/{site.path}:{site.line}: {site.template or 'a message that is no literal'}"
        for site in missing
    )


def test_the_list_of_what_is_not_held_to_it_names_what_exists() -> None:
    assert [name for name in NOT_YET if not (SOURCE / name).exists()] == []


def test_the_rule_itself() -> None:
    """A message nobody matches, one that only a common word matches, and one that is matched."""
    a, b, c = (Site("x.py", line, text) for line, text in enumerate(["red … apple", "green apple", "grey stone"]))
    assert untested([a, b, c], {"apple", "stone$", "red"}) == [b]
    assert template(ast.parse('f"a{x}b" + "c" + word').body[0]) == "a…bc"
