"""Numbers of options: to a type checker plain ones, checked where the command line is read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    NonNegativeInt = int
    PositiveInt = int
    NonNegativeFloat = float
    PositiveFloat = float
else:
    from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt"]
