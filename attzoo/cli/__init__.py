"""Command line. It needs typer and rich (extra `cli`), and imports frameworks only in commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer  # noqa: TID253

from .. import __version__
from ..contract import is_out_of_memory
from . import blocks, demo, files, networks, pictures
from .scores import score
from .shared import one_line, print_names_as_bytes

app = typer.Typer(
    help="Show and check attention blocks for PyTorch and Keras, and train and apply U-Nets with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments`, by default the arguments of the process, and exit.

    Errors of the library are printed as one line on stderr, with exit code 1.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")   # no log of TensorFlow at import
    os.environ.setdefault("JAX_ENABLE_X64", "1")         # `check` computes in float64
    print_names_as_bytes(sys.stderr)
    try:
        app(args=arguments, prog_name="attzoo")
    except (ValueError, TypeError, OSError, ImportError) as err:
        sys.exit(f"attzoo: {one_line(err)}")
    except Exception as err:
        if not is_out_of_memory(err):
            raise
        hint = "try a smaller --batch or --size, or in predict --window"
        sys.exit(f"attzoo: out of memory: {one_line(err)[:200]}; {hint}")


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Handle the options that stand before the command: print the version and exit for --version."""
    if version:
        typer.echo(f"attzoo {__version__}")
        raise typer.Exit


app.command("list")(blocks.list_)
app.command()(blocks.info)
app.command()(blocks.check)
app.command()(files.convert)
app.command()(networks.train)
app.command()(pictures.predict)
app.command()(score)
app.command()(pictures.maps)
app.command()(demo.demo)
