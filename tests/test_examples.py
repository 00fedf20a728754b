"""Every example runs as a user would run it; every Python block of README and docs runs, each page in one namespace."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import throughtime
from throughtime.capture import trace_step
from throughtime.plan.make import make_plan

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script: Path) -> None:
    """Each ends with an assertion of its own where there is something to reach."""
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 60


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_python_blocks_of_a_page_run(page: Path) -> None:
    """In order, as one program. TensorFlow's code, and what is meant to fail, stands in blocks of other names."""
    run_blocks(page)


def run_blocks(page: Path) -> dict:
    """What the blocks of a page leave behind."""
    text = page.read_text()
    namespace: dict = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], str(page), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def test_the_plan_on_the_page_is_the_plan(request: pytest.FixtureRequest) -> None:
    cell = throughtime.BasicLSTMCell(4, input_size=3)
    plan = str(make_plan(trace_step(cell, torch.zeros(2, 3), cell.initial_state(2)).pair))
    assert_shown(request, ROOT / "docs" / "how-it-works.md", "plan", plan)


def test_the_page_of_explain_is_what_it_prints(request: pytest.FixtureRequest) -> None:
    """But for what depends on the machine."""
    readme = ROOT / "README.md"
    assert_shown(request, readme, "page", str(run_blocks(readme)["page"]), r"for \w+, vectors.*|at most at once.*")


def assert_shown(request: pytest.FixtureRequest, page: Path, kind: str, want: str, but_for: str = "(?!)") -> None:
    """The page's block of that kind holds the text. `pytest --update-golden` writes it anew."""
    text = page.read_text()
    block = re.search(rf"^```{kind}\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    if request.config.getoption("--update-golden"):
        page.write_text(text[: block.start(1)] + want + text[block.end(1) :])
    else:
        shown, made = (re.sub(but_for, "", part) for part in (block[1], want))
        assert shown == made, f"{page.name} shows another {kind}; write it anew: pytest --update-golden"
