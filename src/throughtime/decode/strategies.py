"""How the next token is chosen, as values: Greedy(), Sample(...), Beam(...)."""

from dataclasses import dataclass

from throughtime.decode.sampling import check_sampling

__all__ = ["Beam", "Greedy", "Sample", "Strategy"]


@dataclass(frozen=True)
class Greedy:
    """The most probable token at every step."""


@dataclass(frozen=True)
class Sample:
    """A token drawn from softmax(logits / temperature).

    Args:
        temperature: above 0; below 1 sharper, above 1 flatter.
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities reach p together.
        seed: the same draws again. A row draws the same whatever else is in the batch. By default a seed is drawn from
            PyTorch's generator.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_sampling("Sample", self.temperature, self.top_k, self.top_p)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ValueError(f"Sample: seed must be a whole number, got {self.seed!r}. None draws a fresh one.")


@dataclass(frozen=True)
class Beam:
    """The best of `width` hypotheses kept at every step: see `BeamSearchDecoder` for the scores.

    Args:
        width: hypotheses per row.
        length_penalty: the power of (5 + length) / 6 that log p is divided by; 0 favours short sequences, 1 long ones.
        coverage_penalty: the weight of the attention that a finished hypothesis leaves out.
    """

    width: int
    length_penalty: float = 0.0
    coverage_penalty: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"Beam: width must be a whole number of at least 1, got {self.width!r}.")
        for name in ("length_penalty", "coverage_penalty"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Beam: a penalty must be at least 0, got {name}={getattr(self, name)}.")


Strategy = Greedy | Sample | Beam
