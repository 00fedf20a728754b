"""What a person who runs a command can put right. The command line prints the message alone, without a traceback."""

__all__ = ["FitError"]


class FitError(Exception):
    """Bad input, a run directory that does not fit, a file that cannot be written: rule, difference, remedy."""
