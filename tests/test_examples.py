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
    text = page.read_text()
    namespace: dict = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def test_the_plan_on_the_page_is_the_plan(request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes it anew."""
    page = ROOT / "docs" / "how-it-works.md"
    text = page.read_text()
    block = re.search(r"^```plan\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    cell = throughtime.BasicLSTMCell(4, input_size=3)
    plan = str(make_plan(trace_step(cell, torch.zeros(2, 3), cell.initial_state(2)).pair))
    if request.config.getoption("--update-golden"):
        page.write_text(text[: block.start(1)] + plan + text[block.end(1) :])
    else:
        assert block[1] == plan, f"{page.name} shows another plan; write it anew: pytest --update-golden"
