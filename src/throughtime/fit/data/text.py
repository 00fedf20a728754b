"""Text files -> lines or whole texts."""

from pathlib import Path

from throughtime.fit.errors import FitError

__all__ = ["read_lines", "read_text"]


def read_text(kind: str, path: Path) -> str:
    if not path.is_file():
        raise FitError(f"{kind}: cannot find the text file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FitError(f"{kind}: {path} is not text in UTF-8: {error}.") from error
    if not text.strip():
        raise FitError(f"{kind}: {path} holds nothing but white space.")
    return text


def read_lines(kind: str, path: Path) -> list[str]:
    """Without their ends; the last may lack one."""
    lines = read_text(kind, path).split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
