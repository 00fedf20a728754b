"""Numbers -> words for a person."""

__all__ = ["counted", "figure", "percent"]


def percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def figure(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def counted(number: int, noun: str) -> str:
    """1 layer, 2 layers."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
