"""What the package offers, frozen: a name that comes or goes is a decision, and a line here and in the changelog."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch

import throughtime

NAMES = [
    "RNN",
    "AttentionMechanism",
    "AttentionOutput",
    "AttentionWrapper",
    "AttentionWrapperState",
    "BackendError",
    "BackendWarning",
    "BahdanauAttention",
    "BahdanauMonotonicAttention",
    "BasicDecoder",
    "BasicDecoderOutput",
    "BasicLSTMCell",
    "BasicRNNCell",
    "Beam",
    "BeamSearchDecoder",
    "BeamSearchDecoderOutput",
    "BeamSearchDecoderState",
    "Budget",
    "CaptureError",
    "CustomHelper",
    "Decoder",
    "DropoutWrapper",
    "Explanation",
    "FinalBeamSearchDecoderOutput",
    "GRUCell",
    "Generation",
    "Greedy",
    "GreedyEmbeddingHelper",
    "Helper",
    "Hypotheses",
    "InferenceHelper",
    "LSTMCell",
    "LSTMStateTuple",
    "LuongAttention",
    "LuongMonotonicAttention",
    "Memory",
    "MemoryPolicyError",
    "MultiRNNCell",
    "PlanError",
    "RNNCell",
    "Recompute",
    "ResetError",
    "ResidualWrapper",
    "Sample",
    "SampleEmbeddingHelper",
    "SaveAll",
    "ScheduledEmbeddingTrainingHelper",
    "ScheduledOutputTrainingHelper",
    "SequenceError",
    "Spill",
    "SpillError",
    "StateError",
    "StreamedStep",
    "TrainingHelper",
    "Window",
    "bidirectional_dynamic_rnn",
    "dynamic_decode",
    "dynamic_rnn",
    "explain",
    "gather_tree",
    "gather_tree_from_array",
    "generate",
    "generate_stream",
    "hardmax",
    "monotonic_attention",
    "raw_rnn",
    "safe_cumprod",
    "sequence_loss",
    "sequence_mask",
    "static_rnn",
    "tile_batch",
    "truncated",
    "unroll_loss",
]
# TensorFlow 1's parameters, in its order; what stands after the star is ours.
SIGNATURES = {
    "dynamic_rnn": "cell inputs sequence_length initial_state dtype parallel_iterations swap_memory time_major *"
    " reset reset_state memory backend",
    "bidirectional_dynamic_rnn": "cell_fw cell_bw inputs sequence_length initial_state_fw initial_state_bw dtype"
    " parallel_iterations swap_memory time_major * memory backend",
    "static_rnn": "cell inputs initial_state dtype sequence_length",
}


def test_the_names() -> None:
    assert throughtime.__all__ == NAMES


def test_each_name_is_there_and_is_its_own() -> None:
    for name in NAMES:
        value = getattr(throughtime, name)
        assert value.__module__.split(".")[0] == "throughtime", name
        assert value.__name__ == name


@pytest.mark.parametrize(("name", "want"), SIGNATURES.items())
def test_signatures(name: str, want: str) -> None:
    parameters = inspect.signature(getattr(throughtime, name)).parameters.values()
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert " ".join([*named, *(["*", *keyword_only] if keyword_only else [])]) == want


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_means(name: str) -> None:
    """A sentence of its own; and for what does something, its meaning as a loop or an equation, or an example."""
    value = getattr(throughtime, name)
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text, f"{name} has no docstring of its own"
    first = text.strip().split("\n\n")[0].rstrip()
    assert first.endswith((".", ":", "::", "`", ")")), f"{name}: the first sentence of its docstring ends: {first!r}"
    if inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, torch.nn.Module)):
        meaning = any(sign in text for sign in ("::", "Means", ">>>", "`", "Source:"))
        assert meaning, f"{name}: say the meaning as a loop, an equation or an example"
    if inspect.isfunction(value):
        shown = any(sign in text for sign in ("Returns:", "Yield", ">>>"))
        assert shown, f"{name}: say what it returns, or show it"


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_argument_of_an_unroller_is_explained(name: str) -> None:
    value = getattr(throughtime, name)
    for parameter in inspect.signature(value).parameters:
        explained = parameter in value.__doc__ or "Arguments and errors are those of" in value.__doc__
        assert explained, f"{name}: say what {parameter} is"


def test_every_error_tells_its_kind() -> None:
    """So that `except ValueError` catches what a wrong value is, as in TensorFlow and PyTorch."""
    for name in ("SequenceError", "StateError", "ResetError"):
        assert issubclass(getattr(throughtime, name), ValueError)
    for name in ("CaptureError", "BackendError"):
        assert issubclass(getattr(throughtime, name), RuntimeError)


def modules() -> list[str]:
    found = pkgutil.walk_packages(throughtime.__path__, "throughtime.")
    return ["throughtime", *sorted(module.name for module in found if not module.name.endswith("__main__"))]


def test_doctests() -> None:
    """Every example in a docstring of the package runs and prints what it says."""
    attempted = 0
    for name in modules():
        torch.manual_seed(0)
        results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
        assert results.failed == 0, f"{name}: {results.failed} examples fail; see the captured output"
        attempted += results.attempted
    assert attempted > 30


def test_importing_the_package_pulls_in_no_optional_package() -> None:
    """`pip install throughtime` alone must do."""
    optional = ["pytorch_lightning", "pyarrow", "sklearn", "matplotlib", "rich", "tensorboard", "torchmetrics"]
    code = f"import sys, throughtime; print([name for name in {optional} if name in sys.modules])"
    assert printed_by(code) == "[]"


def test_the_cells_of_contrib_are_there_once_the_package_is_imported() -> None:
    assert printed_by("import throughtime; print(throughtime.cells.contrib.SRUCell.__name__)") == "SRUCell"


def printed_by(code: str) -> str:
    """Of a process of its own, in which nothing is imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
