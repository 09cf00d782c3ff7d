"""Messages that name the extra of pyproject.toml to install where an optional package is missing."""

from __future__ import annotations


def install_command(*extras: str) -> str:
    """Return the command that installs `extras` of pyproject.toml.

    The command installs from a clone, because the name attzoo on PyPI does not belong to this project.

    >>> install_command("torch")
    'pip install -e ".[torch]" in a clone of attzoo'
    """
    return f'pip install -e ".[{",".join(extras)}]" in a clone of attzoo'


def missing(package: str, extra: str, needed_by: str) -> str:
    """Return the message of the error for a package that is not installed.

    Args:
        package: the name of the package.
        extra: the extra of pyproject.toml that installs it.
        needed_by: what needs the package, such as an option or a function.

    """
    return f"{package} is not installed, and {needed_by} needs it: {install_command(extra)}"
