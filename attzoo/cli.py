"""The command line. Needs typer and rich, the extra `cli`; a framework is loaded by the commands that need one."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer  # noqa: TID253
from rich.console import Console  # noqa: TID253
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: TID253
from rich.table import Table  # noqa: TID253
from rich.text import Text  # noqa: TID253

from . import __version__, portable, registry
from .card import CHANNELS, PIXELS, Card
from .card import info as card_of

if TYPE_CHECKING:
    from .testing import Finding

PACKAGES: Final = ("numpy", "safetensors", "torch", "keras", "tensorflow", "jax", "triton")
ABORTS: Final = (
    "TensorFlow 2.20 and 2.21 abort the process when triton is loaded after them, as PyTorch's optimizers do: "
    "import attzoo.keras, or triton, before TensorFlow."
)
Result = tuple[str, str, "list[Finding]"]   # block, backend, what came of each contract

app = typer.Typer(
    help="Attention blocks for PyTorch and Keras, each with one meaning in both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Backend(StrEnum):
    """The frameworks that can be checked."""

    torch = "torch"
    keras = "keras"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the library refuses is one line on stderr and exit code 1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")   # TensorFlow greets at length
    os.environ.setdefault("JAX_ENABLE_X64", "1")         # without it JAX has no float64 to be checked in
    try:
        app(args=arguments, prog_name="attzoo")
    except (ValueError, TypeError, OSError, ImportError) as err:
        sys.exit(f"attzoo: {_line(err)}")


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Say the version and exit.")] = False) -> None:
    """What may stand before a command."""
    if version:
        typer.echo(f"attzoo {__version__}")
        raise typer.Exit


# ---- list, info ------------------------------------------------------------------------------------


@app.command("list")
def list_() -> None:
    """All blocks: what they do, what they hold, what they cost."""
    rows = []
    for name, card in _cards():
        if isinstance(card, Exception):
            rows.append((name, f"cannot be loaded: {_line(card)}", "", ""))
        else:
            cost = ("?", "?") if card.unknown else (f"{card.parameters():,}", f"{card.macs():,}")
            rows.append(("\n  ".join((name, *card.aliases)), card.summary, *cost))
    _show(("block, aliases", "what it does", "*parameters", "*MACs"), rows)
    typer.echo(f"At {CHANNELS} channels; multiply-adds (MACs) for one image of {PIXELS} x {PIXELS} pixels.")


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A block, as `attzoo list` has it.")],
    channels: Annotated[int, typer.Option(min=1, metavar="C", help="Where weights and costs are stated.")] = CHANNELS,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of Markdown.")] = False,
) -> None:
    """One block: formula, use, sources, arguments, weights, costs."""
    card = card_of(name)
    typer.echo(card.markdown(channels).rstrip() if markdown else card.plain(channels, min(100, Console().width)))


# ---- check -----------------------------------------------------------------------------------------


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A block; all of them unless given.")] = None,
    backend: Annotated[Backend | None, typer.Option(help="A framework; all installed ones unless given.")] = None,
) -> None:
    """Prove on this machine that blocks compute what they mean.

    That is: outputs, gradients, training, starts, refusals and files, each against the block's spec in float64.
    Keras is checked on the backend that it runs on; set KERAS_BACKEND to tensorflow, jax or torch to choose it.
    """
    cards = [(name, card_of(name))] if name else list(_cards())
    if warning := hazard():
        typer.echo(fill(warning, min(100, Console().width)), err=True)
    backends = [_loaded(backend)] if backend else _installed()
    typer.echo(fill(versions(), min(100, Console().width)) + "\n")
    results = _results([(block, b) for block, card in cards for b in backends], dict(cards))
    if name:
        rows = [(b, f.contract, str(f.cases), *_verdict([f])) for _, b, findings in results for f in findings]
        _show(("backend", "contract", "*cases", "*worst", "verdict"), rows)
    else:
        rows = [(block, b, str(sum(f.cases for f in fs)), *_verdict(fs)) for block, b, fs in results]
        _show(("block", "backend", "*cases", "*worst", "verdict"), rows)
    typer.echo("worst: the largest error, as a share of what is allowed")
    failures = [f"{block}, {b}, {f.contract}: {f.failure}" for block, b, fs in results for f in fs if f.failure]
    if failures or not results:
        typer.echo("\n" + "\n".join(failures or ["nothing was checked"]), err=True)
        raise typer.Exit(1)


def hazard() -> str | None:
    """What to know about TensorFlow and triton in this installation, or None."""
    tensorflow, triton = ("loaded" if p in sys.modules else bool(find_spec(p)) for p in ("tensorflow", "triton"))
    if tensorflow == "loaded" and triton is True:
        return f"warning: TensorFlow was loaded before triton. {ABORTS}"
    return f"note: TensorFlow and triton are installed. {ABORTS}" if tensorflow and triton else None


def versions() -> str:
    """What is installed of the packages that attzoo works with; what Keras runs on, where it is loaded."""
    names = metadata.packages_distributions()   # tensorflow may come as tensorflow-cpu
    found = {p: metadata.version(names[p][0]) for p in PACKAGES if p in names}
    if "keras" in sys.modules:
        found["keras"] += f" (on {sys.modules['keras'].backend.backend()})"
    told = ", ".join(f"{package} {version}" for package, version in found.items())
    return f"attzoo {__version__} with python {platform.python_version()}, {told}"


def _installed() -> list[str]:
    """The backends that can be loaded, now loaded; what the others lack is said."""
    ready = []
    for backend in Backend:
        try:
            ready.append(_loaded(backend))
        except ImportError as err:
            typer.echo(f"not checked: {_line(err)}", err=True)
    return ready


def _loaded(backend: str) -> str:
    with Console(stderr=True).status(f"loading {backend}"):
        registry.get("se", backend=backend)
    return str(backend)


def _results(jobs: Sequence[tuple[str, str]], cards: Mapping[str, Card | Exception]) -> list[Result]:
    """Every (block, backend) held to every contract, under a progress bar."""
    from .testing import Finding, check_block

    console, results = Console(stderr=True), []
    share = TextColumn("{task.percentage:3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(jobs))
        for i, (block, backend) in enumerate(jobs):

            def progress(contract: str, done: int, total: int, i: int = i, what: str = f"{block}, {backend}") -> None:
                bar.update(task, description=f"{what}, {contract}", completed=i + done / total)

            card = cards[block]
            if isinstance(card, Exception):
                results.append((block, backend, [Finding("import", 0, 0.0, _line(card))]))
            elif backend in card.backends:
                results.append((block, backend, check_block(block, backend, progress=progress)))
    return results


def _verdict(findings: Sequence[Finding]) -> tuple[str, str]:
    failed = sum(f.failure is not None for f in findings)
    return f"{max(f.worst for f in findings):.0%}", "holds" if not failed else f"{failed} of {len(findings)} fail"


# ---- convert ---------------------------------------------------------------------------------------


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors file of attzoo.save.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; its ending says what.")],
) -> None:
    """Turn a portable file into one for PyTorch or Keras.

    \b
    OUT ends in
      .pt           a state_dict:        block.load_state_dict(torch.load(OUT))
      .weights.h5   a layer's weights:   keras.saving.load_weights(layer, OUT)
      .keras        a model of it alone: keras.models.load_model(OUT)
      .safetensors  a portable file again, checked and written anew

    OUT appears whole or not at all. Only portable files are read: the others can be made to run code.
    """   # noqa: D301, click reads the backspace
    backend, write = _writer(target)
    if source.suffix != ".safetensors":
        raise ValueError(f"expected a .safetensors file of attzoo.save, got {source}: load it in its own framework")
    block = portable.load(source, backend=backend)
    _replace(target, lambda path: write(block, path))
    typer.echo(f"{target}: {registry.name_of(block.spec)}, {backend}, {target.stat().st_size:,} bytes")


def _writer(target: Path) -> tuple[str, Callable[[Any, Path], None]]:
    """Backend and function for a file of this name."""
    for ending, (backend, write) in WRITERS.items():
        if target.name.endswith(ending):
            return backend or _installed_one(), write
    raise ValueError(f"expected an ending of {', '.join(WRITERS)}, got {target.name}")


def _save_torch(block: Any, path: Path) -> None:
    import torch

    torch.save(block.state_dict(), path)


def _save_keras_weights(block: Any, path: Path) -> None:
    import keras  # a block of Keras is here, so Keras is too, and triton before it

    keras.saving.save_weights(block, path)


def _save_keras(block: Any, path: Path) -> None:
    import keras

    space = (None,) * getattr(block.spec, "spatial_dims", 2)
    shapes = [(*space, c) if block.data_format == "channels_last" else (c, *space) for c in block.spec.inputs]
    inputs = [keras.Input(shape, dtype=block.compute_dtype) for shape in shapes]
    keras.Model(inputs, block(*inputs)).save(path)


WRITERS: Final[Mapping[str, tuple[str | None, Callable[[Any, Path], None]]]] = {
    ".pt": ("torch", _save_torch),
    ".pth": ("torch", _save_torch),
    ".weights.h5": ("keras", _save_keras_weights),
    ".keras": ("keras", _save_keras),
    ".safetensors": (None, portable.save),
}


def _installed_one() -> str:
    """Any installed backend; raises where there is none."""
    for backend in Backend:
        if find_spec(backend):
            return backend
    raise ModuleNotFoundError('neither torch nor keras is installed: pip install "attzoo[torch]", or [tensorflow]')


def _replace(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file, and put it in place of `target` only when it is whole."""
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    if target.exists() and not target.is_file():
        raise OSError(f"expected a file or nothing at {target}, got something else")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".attzoo-") as folder:
        write(whole := Path(folder) / target.name)   # writers look at the ending
        if target.exists():
            whole.chmod(target.stat().st_mode & 0o777)
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(whole, target)


# ---- demo ------------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to put pictures and weights.")] = Path("attzoo-demo"),
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes over the digits.")] = None,
) -> None:
    """Train a net with each block on real digits, in both frameworks.

    Writes a picture of what each block attends to, and the trained weights as portable files.
    """
    from .demo.run import demo as run

    run(out) if epochs is None else run(out, epochs)


# ---- shared ----------------------------------------------------------------------------------------


def _cards() -> Iterator[tuple[str, Card | Exception]]:
    """Every block's card; for a third party's that cannot be loaded, why."""
    for name in registry.names():
        try:
            yield name, card_of(name)
        except Exception as err:
            if name in registry.BLOCKS:
                raise
            yield name, err


def _show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; a heading with a star is of numbers, set to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in head:
        table.add_column(title.lstrip("*"), justify="right" if title.startswith("*") else "left")
    for row in rows:
        table.add_row(*map(Text, row))   # Text, or [brackets] would be taken for markup
    Console().print(table)


def _line(err: Exception) -> str:
    """An error as one line."""
    if isinstance(err, OSError) and err.filename and err.strerror:
        return f"{err.filename}: {err.strerror}"
    return " ".join(str(err).split()) or type(err).__name__
