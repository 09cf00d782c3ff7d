"""What to run where an optional package is missing: the project's extras, installed from a clone."""

from __future__ import annotations


def install_command(*extras: str) -> str:
    """The command that installs extras of pyproject.toml.

    It installs from a clone: the name attzoo on the package index does not belong to this project.

    >>> install_command("torch")
    'pip install -e ".[torch]" in a clone of attzoo'
    """
    return f'pip install -e ".[{",".join(extras)}]" in a clone of attzoo'


def missing(package: str, extra: str, needed_by: str) -> str:
    """The text of the error for a package that is not installed."""
    return f"{package} is not installed, and {needed_by} needs it: {install_command(extra)}"
