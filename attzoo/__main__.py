"""`attzoo`, or `python -m attzoo`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without typer or rich, say what to install."""
    try:
        from . import cli
    except ModuleNotFoundError as err:
        package = (err.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(f'attzoo: {package} is not installed, and the command line needs it: pip install "attzoo[cli]"')
    cli.main()


if __name__ == "__main__":
    main()
