"""`throughtime fit | evaluate | predict | generate` and `python -m throughtime ...`."""

import sys

MISSING: str | None = None
try:
    from throughtime.fit.command_line import run_command
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] == "throughtime":
        raise
    MISSING = error.name

INSTALL = "pip install 'throughtime[fit]'"


def main() -> int:
    if MISSING is not None:
        print(f"throughtime: training needs the package {MISSING}. Install it with: {INSTALL}", file=sys.stderr)
        return 1
    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
