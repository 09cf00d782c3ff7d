"""Entry point of the commands `attzoo` and `python -m attzoo`."""

from __future__ import annotations

import sys

from .extras import missing


def main() -> None:
    """Run the command line. Exit with the install command where typer or rich is not installed."""
    try:
        from . import cli
    except ModuleNotFoundError as err:
        package = (err.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(f"attzoo: {missing(package, 'cli', 'the command line')}")
    cli.main()


if __name__ == "__main__":
    main()
