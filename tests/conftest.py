"""Every test starts from one seed, and hypothesis from one too: a failure on one machine fails on all.

`pytest --hypothesis-profile=search` looks further, each time elsewhere.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("same", max_examples=60, deadline=None, derandomize=True)
settings.register_profile(
    "search", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("plans/gru", text)`: the text is that of the file under tests/golden; `--update-golden` writes it."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n")
        assert path.exists(), f"there is no {path}; write it with pytest --update-golden, and read it"
        assert path.read_text() == f"{text}\n", f"{path.name} differs; if it is meant to: pytest --update-golden"

    return check


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden text files anew")
