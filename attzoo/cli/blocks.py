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
from .shared import Backend, backend_option, line, show

if TYPE_CHECKING:
    from ..testing import Finding

PACKAGES: Final = ("numpy", "safetensors", "torch", "keras", "tensorflow", "jax", "triton")
ABORTS: Final = (
    "TensorFlow 2.20 and 2.21 abort the process when triton is loaded after them, as PyTorch's optimizers do: "
    "import attzoo.keras, or triton, before TensorFlow."
)
Result = tuple[str, str, "list[Finding]"]   # block, backend, what came of each contract


# ---- list, info ------------------------------------------------------------------------------------


def list_() -> None:
    """All blocks: what they do, what they hold, what they cost."""
    rows = []
    for name, card in _cards():
        if isinstance(card, Exception):
            rows.append((name, f"cannot be loaded: {line(card)}", "", ""))
        else:
            cost = ("?", "?") if card.unknown else (f"{card.parameters():,}", f"{card.macs():,}")
            rows.append(("\n  ".join((name, *card.aliases)), card.summary, *cost))
    show(("block, aliases", "what it does", "*parameters", "*MACs"), rows)
    networks = ", ".join(registry.NETWORKS)
    typer.echo(f"Whole networks made of them, for `attzoo info` and attzoo.create: {networks}.")
    typer.echo(f"At {CHANNELS} channels; multiply-adds (MACs) for one image of {PIXELS} x {PIXELS} pixels.")


def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A block, as `attzoo list` has it.")],
    channels: Annotated[
        int | None, typer.Option(min=1, metavar="C", help=f"Where weights and costs are stated.  [{CHANNELS}]")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of Markdown.")] = False,
) -> None:
    """One block: formula, use, sources, arguments, weights, costs."""
    card = card_of(name)
    if card.network and channels is not None:
        of = f"whose parameters are stated at {IMAGE[0]} channels in and {IMAGE[1]} out"
        raise ValueError(f"--channels is for blocks, got it for the network {card.name}, {of}: leave it out")
    channels = CHANNELS if channels is None else channels
    typer.echo(card.markdown(channels).rstrip() if markdown else card.plain(channels, min(100, Console().width)))


def _cards() -> Iterator[tuple[str, Card | Exception]]:
    """Every block's card; for a third party's that cannot be loaded, why."""
    for name in registry.names():
        try:
            yield name, card_of(name)
        except Exception as err:
            if name in registry.BLOCKS:
                raise
            yield name, err


# ---- check -----------------------------------------------------------------------------------------


def check(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A block; all of them unless given.")] = None,
    backend: Annotated[Backend | None, backend_option("A framework; all installed ones unless given.")] = None,
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
        show(("backend", "contract", "*cases", "*worst", "verdict"), rows)
    else:
        rows = [(block, b, str(sum(f.cases for f in fs)), *_verdict(fs)) for block, b, fs in results]
        show(("block", "backend", "*cases", "*worst", "verdict"), rows)
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
            typer.echo(f"not checked: {line(err)}", err=True)
    return ready


def _loaded(backend: str) -> str:
    with Console(stderr=True).status(f"loading {backend}"):
        registry.get("se", backend=backend)
    return str(backend)


def _results(jobs: Sequence[tuple[str, str]], cards: Mapping[str, Card | Exception]) -> list[Result]:
    """Every (block, backend) held to every contract, under a progress bar."""
    from ..testing import Finding, check_block

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
                results.append((block, backend, [Finding("import", 0, 0.0, line(card))]))
            elif backend in card.backends:
                results.append((block, backend, check_block(block, backend, progress=progress)))
    return results


def _verdict(findings: Sequence[Finding]) -> tuple[str, str]:
    failed = sum(f.failure is not None for f in findings)
    return f"{max(f.worst for f in findings):.0%}", "holds" if not failed else f"{failed} of {len(findings)} fail"
