"""`golden(name, text)`: the text is that of the file, or becomes it under `--update-golden`."""

from collections.abc import Callable
from pathlib import Path

import pytest

PLANS = Path(__file__).parents[1] / "golden" / "plans"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    def check(name: str, text: str) -> None:
        path = PLANS / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
        assert path.exists(), f"no {path.name} in {PLANS}; write it with pytest --update-golden and read it"
        assert path.read_text() == text + "\n", f"{path.name} differs; if it is better now: pytest --update-golden"

    return check
