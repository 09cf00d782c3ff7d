"""The commands on blocks: list, info, check."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Final

import typer  # noqa: TID253
from rich.console import Console  # noqa: TID253
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: TID253

from .. import __version__, registry
from ..card import CHANNELS, IMAGE, PIXELS, Card
from ..card import info as card_of
from .shared import Backend, backend_option, one_line, print_table

if TYPE_CHECKING:
    from ..testing import Finding

PACKAGES: Final = ("numpy", "safetensors", "torch", "keras", "tensorflow", "jax", "triton")
ABORT_TEXT: Final = (
    "TensorFlow 2.20 and 2.21 abort the process when triton is loaded after them, as PyTorch's optimizers do: "
    "import attzoo.keras, or triton, before TensorFlow."
)
Result = tuple[str, str, "list[Finding]"]   # block, backend, findings by contract


# ---- list, info ------------------------------------------------------------------------------------


def list_() -> None:
    """List all blocks with their parameters and multiply-adds."""
    rows = []
    for name, card in _cards():
        if isinstance(card, Exception):
            rows.append((name, f"cannot be loaded: {one_line(card)}", "", ""))
        else:
            costs = ("?", "?") if card.unknown else card.costs
            rows.append(("\n  ".join((name, *card.aliases)), card.summary, *costs))
    print_table(("block, aliases", "what it does", "*parameters", "*MACs"), rows)
    networks = ", ".join(registry.NETWORKS)
    typer.echo(f"Networks built of these blocks, for `attzoo info` and attzoo.create: {networks}.")
    typer.echo(f"Parameters at {CHANNELS} channels; multiply-adds (MACs) for one input of {PIXELS} x {PIXELS} pixels.")


def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a block or network in `attzoo list`.")],
    channels: Annotated[
        int | None, typer.Option(min=1, metavar="C", help=f"Number of channels, for weights and costs.  [{CHANNELS}]")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of plain text.")] = False,
) -> None:
    """Describe a block or network.

    Prints its formula, sources, arguments, published variants, weights and cost.
    """
    card = card_of(name)
    if card.network and channels is not None:
        channels_text = f"shown for {IMAGE[0]} input channels and {IMAGE[1]} output channel"
        got = f"{channels_text}: leave --channels out"
        raise ValueError(f"expected no --channels for network {card.name}, which is {got}")
    channels = card.channels if channels is None else channels
    typer.echo(card.markdown(channels).rstrip() if markdown else card.plain(channels, min(100, Console().width)))


def _cards() -> Iterator[tuple[str, Card | Exception]]:
    """Yield the name and card of every block, or the error for a third-party block that cannot be loaded."""
    for name in registry.names():
        try:
            yield name, card_of(name)
        except Exception as err:
            if name in registry.BLOCKS:
                raise
            yield name, err


# ---- check -----------------------------------------------------------------------------------------


def check(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of a block.  [all blocks]")] = None,
    backend: Annotated[Backend | None, backend_option("Framework to check.  [all installed frameworks]")] = None,
) -> None:
    """Compare blocks with their NumPy reference on this machine.

    Compares outputs, gradients, training, initial weights, errors and saved files, in float64. Exits with 1 if a
    difference exceeds its tolerance. Keras runs on its current backend. To choose another, set the environment
    variable KERAS_BACKEND to tensorflow, jax or torch.
    """
    cards = [(name, card_of(name))] if name else list(_cards())
    if warning := triton_warning():
        typer.echo(fill(warning, min(100, Console().width)), err=True)
    backends = [_loaded(backend)] if backend else _installed()
    typer.echo(fill(versions(), min(100, Console().width)) + "\n")
    results = _results([(block, backend) for block, card in cards for backend in backends], dict(cards))
    if name:
        rows = [
            (backend, finding.contract, str(finding.cases), *_verdict([finding]))
            for _, backend, findings in results
            for finding in findings
        ]
        print_table(("backend", "contract", "*cases", "*worst", "verdict"), rows)
    else:
        rows = [
            (block, backend, str(sum(finding.cases for finding in findings_of_block)), *_verdict(findings_of_block))
            for block, backend, findings_of_block in results
        ]
        print_table(("block", "backend", "*cases", "*worst", "verdict"), rows)
    typer.echo("worst: largest error in percent of the tolerance")
    failures = [
        f"{block}, {backend}, {finding.contract}: {finding.failure}"
        for block, backend, findings_of_block in results
        for finding in findings_of_block
        if finding.failure
    ]
    if failures or not results:
        typer.echo("\n" + "\n".join(failures or ["no block was checked"]), err=True)
        raise typer.Exit(1)


def triton_warning() -> str | None:
    """Return a warning, or None, about TensorFlow and triton, which abort the process if imported in a wrong order."""
    tensorflow, triton = (
        "loaded" if package in sys.modules else bool(find_spec(package)) for package in ("tensorflow", "triton")
    )
    if tensorflow == "loaded" and triton is True:
        return f"warning: TensorFlow was loaded before triton. {ABORT_TEXT}"
    return f"note: TensorFlow and triton are installed. {ABORT_TEXT}" if tensorflow and triton else None


def versions() -> str:
    """Return the versions of attzoo, Python and installed packages, and the backend of Keras if loaded."""
    names = metadata.packages_distributions()   # tensorflow may be installed as tensorflow-cpu
    installed = {package: metadata.version(names[package][0]) for package in PACKAGES if package in names}
    if "keras" in sys.modules:
        installed["keras"] += f" (on {sys.modules['keras'].backend.backend()})"
    packages_text = ", ".join(f"{package} {version}" for package, version in installed.items())
    return f"attzoo {__version__} with python {platform.python_version()}, {packages_text}"


def _installed() -> list[str]:
    """Import every backend that is installed, and return their names. Print the errors of the others to stderr."""
    backends = []
    for backend in Backend:
        try:
            backends.append(_loaded(backend))
        except ImportError as err:
            typer.echo(f"not checked: {one_line(err)}", err=True)
    return backends


def _loaded(backend: str) -> str:
    """Import a backend, and return its name. Raise ModuleNotFoundError if it is not installed."""
    with Console(stderr=True).status(f"loading {backend}"):
        registry.get("se", backend=backend)
    return str(backend)


def _results(jobs: Sequence[tuple[str, str]], cards: Mapping[str, Card | Exception]) -> list[Result]:
    """Check pairs (block, backend) against every contract, with a progress bar, and return the results.

    A backend that a block does not have is left out. A block that cannot be imported has one failed contract, "import".

    Args:
        jobs: the pairs.
        cards: the card of each block, or the error of its import.
    """
    from ..testing import Finding, check_block

    console, results = Console(stderr=True), []
    percentage = TextColumn("{task.percentage:3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), percentage, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(jobs))
        for i, (block, backend) in enumerate(jobs):

            def progress(contract: str, done: int, total: int, i: int = i, job: str = f"{block}, {backend}") -> None:
                """Advance the bar to `done` of `total` cases of job `i`, and show its contract."""
                bar.update(task, description=f"{job}, {contract}", completed=i + done / total)

            card = cards[block]
            if isinstance(card, Exception):
                results.append((block, backend, [Finding("import", 0, 0.0, one_line(card))]))
            elif backend in card.backends:
                results.append((block, backend, check_block(block, backend, progress=progress)))
    return results


def _verdict(findings: Sequence[Finding]) -> tuple[str, str]:
    """Return the largest error in percent of its tolerance, and "pass" or the number of failed contracts, as texts."""
    failed_count = sum(finding.failure is not None for finding in findings)
    result = f"{failed_count} of {len(findings)} fail" if failed_count else "pass"
    return f"{max(finding.worst for finding in findings):.0%}", result
