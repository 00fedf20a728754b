"""Every error in src/ has a test that matches words only its message has.

A site is a call `SomethingError("…")`, raised there or returned to be raised. Its literal parts, with "…" for what is
filled in, are its template. A `match=` of a test belongs to the template that shares most of its words, in their order;
a template is tested when a `match=` belongs to it and to no other. Tests mirror src/: the tests of a package speak of
that package's errors, and the tests at the top and in conformance/ of the core's.

`match=` may be a literal, or a name that is filled from literals of the test, of its decorators or of a table of the
module.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "throughtime", ROOT / "tests"

PACKAGES = {"capture", "cells", "decode", "fit", "loop", "plan"}


@dataclass(frozen=True)
class Site:
    path: str
    line: int
    template: str


def package_of(relative: Path) -> str:
    return relative.parts[0] if relative.parts[0] in PACKAGES else "core"


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
    """All errors a file makes, and the classes it raises without a message."""
    tree = list(ast.walk(parse(path)))
    raised = [node.exc for node in tree if isinstance(node, ast.Raise)]
    bare = [exc for exc in raised if isinstance(exc, ast.Name) and exc.id[0].isupper()]
    for node in chain(filter(is_error, tree), bare):
        yield Site(path.relative_to(SOURCE).as_posix(), node.lineno, template(node))  # type: ignore[attr-defined]


def patterns(path: Path) -> Iterator[str]:
    """Every string that a test file gives to `match=`."""
    module = parse(path)
    tables = dict(filter(None, map(table, module.body)))
    matches = [node for node in ast.walk(module) if isinstance(node, ast.keyword) and node.arg == "match"]
    yield from filter(None, (template(node.value) for node in matches))
    for function in ast.walk(module):
        if isinstance(function, ast.FunctionDef) and any(
            isinstance(node.value, ast.Name) for node in ast.walk(function) if node in matches
        ):
            for part in (*function.decorator_list, *function.body):
                yield from literals(part, tables)


def table(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """The name and the value of `NAME = …`."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        return statement.target.id, statement.value
    return None


def literals(node: ast.AST, tables: dict[str, ast.expr]) -> Iterator[str]:
    """The strings in an expression and in the tables it names; keys and ids are names of cases, not messages."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in tables:
        yield from literals(tables[node.id], {})
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from literals(value, tables)
    elif not (isinstance(node, ast.keyword) and node.arg in ("ids", "id")):
        for child in ast.iter_child_nodes(node):
            yield from literals(child, tables)


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z_]{2,}|=", text.replace("\\", ""))


def shared(pattern: list[str], message: list[str]) -> int:
    """How many words of the pattern stand in the message, in their order: the longest common subsequence."""
    lengths = [0] * (len(message) + 1)
    for word in pattern:
        before = 0
        for place, other in enumerate(message):
            here = lengths[place + 1]
            lengths[place + 1] = before + 1 if word == other else max(here, lengths[place])
            before = here
    return lengths[-1]


def untested(all_sites: list[Site], all_patterns: set[str]) -> list[Site]:
    messages = {site: words(site.template) for site in all_sites}
    tested = set()
    for pattern in map(words, all_patterns):
        scores = {site: shared(pattern, message) for site, message in messages.items()}
        best = max(scores.values(), default=0)
        owners = [site for site, score in scores.items() if score == best]
        if best and len(owners) == 1:
            tested.update(owners)
    return [site for site in all_sites if site not in tested]


def untested_in(package: str) -> list[Site]:
    files = [path for path in sorted(SOURCE.rglob("*.py")) if package_of(path.relative_to(SOURCE)) == package]
    tests = [path for path in sorted(TESTS.rglob("*.py")) if package_of(path.relative_to(TESTS)) == package]
    return untested([site for path in files for site in sites(path)], set(chain(*map(patterns, tests))))


@pytest.mark.parametrize("package", ["core", *sorted(PACKAGES)])
def test_every_error_has_a_test(package: str) -> None:
    missing = untested_in(package)
    assert not missing, "\n".join(
        [
            f"no `match=` of the tests of {package} has words of these messages that no other message has:",
            *(f"  src/throughtime/{site.path}:{site.line}: {site.template or 'no literal'}" for site in missing),
        ]
    )


def test_the_rule_itself() -> None:
    """Values are filled in; a common word belongs to nobody; what nobody matches is found."""
    sites = [
        Site("x.py", 1, "the apple must be …, got …"),
        Site("x.py", 2, "the stone must be …, got …"),
        Site("x.py", 3, "no pears"),
    ]
    assert untested(sites, {"must be red", "got 5", r"apple must be red.*got \[5\]"}) == sites[1:]
    assert untested(sites, {"stone", "pears"}) == sites[:1]
    assert template(ast.parse('f"a{x}b" + "c" + word').body[0]) == "a…bc"
