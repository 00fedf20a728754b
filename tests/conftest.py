"""Every test starts from one seed, and hypothesis from one too: a failure on one machine fails on all.

`pytest --hypothesis-profile=search` looks further, each time elsewhere.
"""

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden text files anew")
