"""`attzoo demo`: every block at work on real digits, then U-Nets on phantoms (organs.py), in PyTorch and in Keras."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from .. import contract, portable, registry
from ..adapters import adapter
from ..contract import Array
from ..extras import missing
from ..files import write
from . import organs, organs_picture, picture
from .report import as_json, table, unet_table
from .results import BACKENDS, Result

PACKAGES: Final = ("rich", "sklearn", "matplotlib", "torch", "keras", "tensorflow", "jax")   # of "demo"
FILES: Final = {
    "attention.png": "what each block learned to attend to",
    "unet.png": "what gated and plain U-Nets find in phantoms, and where the gates look",
    "results.json": "both tables, and the loss curves step by step",
    "weights": "trained blocks and networks, in files that either framework opens: attzoo.load(file, backend=...)",
}
EPOCHS: Final = (6, 10)          # over the digits, over the phantoms
SEED: Final = 1
CHANNELS: Final = 16
BATCH: Final = 64                # images
RATE: Final = 0.02               # of SGD
MOMENTUM: Final = 0.9
TEST: Final = 360                # images kept out of training
SHOWN: Final = (0, 3, 4, 7, 8)   # digits in the picture
OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {   # what 16 channels of 8x8 pixels need beside the defaults
    "se": {"reduction": 4},
    "channel_attention": {"reduction": 4},
    "spatial_attention": {"kernel_size": 3},
    "cbam": {"reduction": 4, "kernel_size": 3},
    "attention_gate": {"gating_channels": CHANNELS},
}


@dataclass(frozen=True)
class Data:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,), for training and for the test."""

    images: Array
    labels: Any
    test_images: Array
    test_labels: Any

    def batches(self, epochs: int) -> Iterator[tuple[Array, Any]]:
        """The same batches in the same order at every call; what fills no batch sits this epoch out."""
        random = np.random.default_rng(SEED)
        for _ in range(epochs):
            order = random.permutation(len(self.labels))
            for at in range(0, len(order) - BATCH + 1, BATCH):
                picked = order[at : at + BATCH]
                yield self.images[picked], self.labels[picked]

    def shown(self) -> Array:
        """The first test image of each digit in SHOWN."""
        return self.test_images[[np.flatnonzero(self.test_labels == digit)[0] for digit in SHOWN]]


def demo(out: Path, epochs: int | None = None, blocks: Sequence[str] | None = None) -> None:
    """Train a small residual net with each block in turn, then U-Nets, in both frameworks, and show how they agree.

    out: the folder to write the pictures, the results and the weights into, made where there is none.
    epochs: >= 1, of both acts; None means EPOCHS. blocks: names, None for every block of ours.
    Raises NotADirectoryError when `out` is a file, ValueError for an unknown block, and ModuleNotFoundError, with the
    install command, where a package of the extra "demo" is absent.
    """
    names, out = _names(blocks), Path(out)
    digits_epochs, organs_epochs = EPOCHS if epochs is None else (contract.integer("epochs", epochs),) * 2
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out must be a folder, got a file: {out}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")   # TensorFlow greets at length
    _load("rich", "sklearn", "matplotlib")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print("loading PyTorch and Keras")
    contract.triton_first()
    bodies = dict(zip(BACKENDS, _load(f"{__package__}.torch", f"{__package__}.keras"), strict=True))
    _load(*(f"{organs.TRAINERS}.{backend}" for backend in BACKENDS))
    data = digits()
    columns = TextColumn("{task.description:<30}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress, bodies["torch"].one_thread():
        steps = digits_epochs * (len(data.labels) // BATCH) * len(BACKENDS) * (1 + len(names))
        task = progress.add_task("", total=steps + organs.steps(organs_epochs))

        def tick(what: str) -> None:
            progress.update(task, advance=1, description=what)

        results, attention = compare(names, bodies, data, digits_epochs, out, tick)
        nets, shown = organs.act(out / "weights", organs_epochs, tick)
    settings = {"seed": SEED, "channels": CHANNELS, "options": OPTIONS, "epochs": digits_epochs, "batch": BATCH}
    settings |= {"rate": RATE, "momentum": MOMENTUM, "keras_backend": bodies["keras"].keras.backend.backend()}
    settings["unets"] = organs.SETTINGS.config() | {"epochs": organs_epochs, "phantoms": organs.COUNT}
    write(out / "results.json", as_json(results, nets, settings))
    write(out / "attention.png", picture.draw(data.shown(), attention))
    write(out / "unet.png", organs_picture.draw(shown, nets))
    console.print(table(results))
    console.print(unet_table(nets))
    for name, what in FILES.items():
        console.print(f"{out / name}: {what}", markup=False, highlight=False, soft_wrap=True)


def compare(
    names: Sequence[str], bodies: Mapping[str, Any], data: Data, epochs: int, out: Path, tick: Callable[[str], None]
) -> tuple[list[Result], dict[str, dict[str, Array]]]:
    """Train the net without a block, then with each, and save those; `tick` hears of every step what it was part of.

    Returns the results, and the coefficients for the digits in SHOWN by block and backend.
    """
    results: list[Result] = []
    attention: dict[str, dict[str, Array]] = {}
    common: dict[str, Array] = {}   # where nets are alike, they start alike
    for name in (None, *names):
        nets = start(name, bodies["torch"], common)
        common = common or portable.weights(nets["torch"])
        results.append(Result(name, *cost(nets["torch"].spec)))
        for backend, net in nets.items():
            train(results[-1], backend, bodies[backend], net, data, epochs, tick)
        if name:
            save(name, nets, out / "weights")
            attention[name] = {b: adapter(b).attention(net, [data.shown()]) for b, net in nets.items()}
    return results, attention


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits, TEST of them put aside, as many of each digit as their share."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images, labels = (found.images / 16).astype(np.float32)[:, None], found.target.astype(np.int64)
    images, held, labels, truth = train_test_split(images, labels, test_size=TEST, stratify=labels, random_state=SEED)
    return Data(images, labels, held, truth)


def start(name: str | None, body: Any, common: dict[str, Array]) -> dict[str, Any]:
    """The net with block `name` by backend, of the same weights; `common` replaces those that it names."""
    net = body.start(SEED, CHANNELS, name, OPTIONS.get(name or "", {}))
    portable.load_weights(net, portable.weights(net) | common)
    return {"torch": net, "keras": portable.convert(net, backend="keras")}


def cost(net: contract.Spec) -> tuple[int, int]:
    """Trainable parameters, and multiply-adds for one image."""
    return sum(w.size for w in net.weights.values() if w.trainable), net.macs((1, 1, 8, 8))


def train(
    result: Result, backend: str, body: Any, net: Any, data: Data, epochs: int, tick: Callable[[str], None]
) -> None:
    """Train and test a net, into `result`."""
    began = perf_counter()
    losses = result.losses[backend] = []
    for loss in body.fit(net, data.batches(epochs), RATE, MOMENTUM):
        losses.append(loss)
        tick(f"{result.title}, {BACKENDS[backend]}")
    result.seconds[backend] = perf_counter() - began
    result.accuracy[backend] = float((body.predict(net, data.test_images).argmax(1) == data.test_labels).mean())


def save(name: str, nets: Mapping[str, Any], folder: Path) -> None:
    """Write each net's two blocks, and read each file back in the other framework.

    Raises RuntimeError when what comes back is not what was written.
    """
    for (backend, net), other in zip(nets.items(), ("keras", "torch"), strict=True):
        (folder / backend).mkdir(parents=True, exist_ok=True)
        for stage in ("stage1", "stage2"):
            path, block = folder / backend / f"{name}.{stage}.safetensors", getattr(net, stage).block
            portable.save(block, path)
            again = portable.weights(portable.load(path, backend=other))
            if any(not np.array_equal(array, again[key]) for key, array in portable.weights(block).items()):
                raise RuntimeError(f"{path} does not give {other} the weights that {backend} wrote")


def _names(blocks: Sequence[str] | None) -> list[str]:
    """Registered names, each once, aliases resolved. Raises as `registry.locate`, and ValueError for none at all."""
    if blocks is None:
        return list(registry.BLOCKS)
    if not blocks:
        raise ValueError("expected at least one block, got none")
    for name in blocks:
        registry.locate(name)
    return list(dict.fromkeys(registry.ALIASES.get(name, name) for name in blocks))


def _load(*modules: str) -> list[Any]:
    """Modules, imported. Raises ModuleNotFoundError, with the install command, where a package they need is absent."""
    try:
        return [import_module(module) for module in modules]
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] not in PACKAGES:   # a broken install is not a missing one
            raise
        raise ModuleNotFoundError(missing(str(err.name), "demo", "the demo"), name=err.name) from err
