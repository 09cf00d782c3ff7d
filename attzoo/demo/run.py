"""`attzoo demo`: train networks with every block on real digits, then U-Nets on phantoms, in PyTorch and in Keras."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from .. import contract, portable, registry
from ..adapters import adapter
from ..card import info
from ..contract import Array, by_name, join_path
from ..extras import missing
from ..files import usable_folder
from ..predict.output import Output
from . import organs, organs_picture, picture
from .report import as_json, table, unet_table
from .results import BACKENDS, Result

PACKAGES: Final = ("rich", "sklearn", "matplotlib", "torch", "keras", "tensorflow", "jax")   # of the extra "demo"
FILES: Final = {   # output file -> its content
    "attention.png": "the attention coefficients of each trained block",
    "unet.png": "predictions of the U-Nets for phantoms, and the coefficients of the gates",
    "results.json": "the values in both tables, and the loss of every step",
    "weights": "trained blocks and networks; attzoo.load(file, backend=...) loads each file in either framework",
}
EPOCHS: Final = (6, 10)          # number of epochs on the digits and on the phantoms
SEED: Final = 1
CHANNELS: Final = 16
BATCH: Final = 64                # number of images in a batch
RATE: Final = 0.02               # learning rate of SGD
MOMENTUM: Final = 0.9
TEST: Final = 360                # number of test images
SHOWN_DIGITS: Final = (0, 3, 4, 7, 8)   # digits in the picture
OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {   # the blocks' arguments, suited to 16 channels of 8x8 pixels
    "se": {"reduction": 4},
    "channel_attention": {"reduction": 4},
    "spatial_attention": {"kernel_size": 3},
    "cbam": {"reduction": 4, "kernel_size": 3},
}


@dataclass(frozen=True)
class Data:
    """Handwritten digits.

    Attributes:
        images: (N, 1, 8, 8) in [0, 1], the training images.
        labels: (N,), the digits of the training images, 0 to 9.
        test_images: (M, 1, 8, 8), the test images.
        test_labels: (M,), the digits of the test images.
    """

    images: Array
    labels: Any
    test_images: Array
    test_labels: Any

    def batches(self, epochs: int) -> Iterator[tuple[Array, Any]]:
        """Yield batches (images, labels) of BATCH images, the same in every call. An incomplete batch is dropped."""
        random = np.random.default_rng(SEED)
        for _ in range(epochs):
            order = random.permutation(len(self.labels))
            for first_index in range(0, len(order) - BATCH + 1, BATCH):
                indices = order[first_index : first_index + BATCH]
                yield self.images[indices], self.labels[indices]

    def examples(self) -> Array:
        """Return the first test image of each digit in SHOWN_DIGITS."""
        return self.test_images[[np.flatnonzero(self.test_labels == digit)[0] for digit in SHOWN_DIGITS]]


def demo(out: Path, epochs: int | None = None, blocks: Sequence[str] | None = None) -> None:
    """Train a small residual network with each block, then U-Nets, in both frameworks; print and write the results.

    Args:
        out: the folder for the pictures, results and weights; it is created if needed.
        epochs: the number of epochs of all trainings, >= 1; None for EPOCHS.
        blocks: the names of blocks; None for every registered block.

    Raises:
        NotADirectoryError: if `out` is a file.
        FileExistsError: if a picture or results.json in `out` is not an unchanged file of an earlier demo.
        TypeError: if `epochs` is not an integer.
        ValueError: if a block is unknown, `blocks` is empty, or `epochs` < 1.
        ModuleNotFoundError: if a package of the extra "demo" is not installed. The message has the install command.
    """
    names, out = _block_names(blocks), Path(out)
    digits_epochs, unet_epochs = EPOCHS if epochs is None else (contract.integer("epochs", epochs),) * 2
    output = Output(usable_folder(out), (), overwrite=None)
    output.check(out / name for name in FILES if name != "weights")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")   # no log messages of TensorFlow
    _import_modules("rich", "sklearn", "matplotlib")
    from rich.console import Console

    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print("loading PyTorch and Keras")
    modules, data = _network_modules(), digits()
    steps = digits_epochs * (len(data.labels) // BATCH) * len(BACKENDS) * (1 + len(names))
    steps += organs.step_count(unet_epochs)
    with _progress_bar(console, steps) as on_step, modules["torch"].one_thread():
        results, attention = train_blocks(names, modules, data, digits_epochs, out, on_step)
        unets, examples = organs.train_unets(out / "weights", unet_epochs, on_step)
    settings = _settings(digits_epochs, unet_epochs, modules["keras"].keras.backend.backend())
    contents = {
        "results.json": as_json(results, unets, settings),
        "attention.png": picture.draw(data.examples(), attention),
        "unet.png": organs_picture.draw(examples, unets),
    }
    output.write({out / name: content for name, content in contents.items()})
    output.finish()
    console.print(table(results))
    console.print(unet_table(unets))
    for name, content in FILES.items():
        console.print(f"{out / name}: {content}", markup=False, highlight=False, soft_wrap=True)


def _network_modules() -> dict[str, Any]:
    """Import both frameworks and the trainers of the U-Nets. Return the module with the demo's network, by backend."""
    contract.triton_first()
    modules = dict(zip(BACKENDS, _import_modules(f"{__package__}.torch", f"{__package__}.keras"), strict=True))
    _import_modules(*(f"{organs.TRAINERS}.{backend}" for backend in BACKENDS))
    return modules


@contextmanager
def _progress_bar(console: Any, steps: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar of `steps` steps during the `with` block.

    Yields a function that advances the bar by one step, and shows its argument, a description of the training.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<30}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps)
        yield lambda description: progress.update(task, advance=1, description=description)


def _settings(digits_epochs: int, unet_epochs: int, keras_backend: str) -> dict[str, Any]:
    """Return the settings of the trainings, for results.json: the arguments, and constants."""
    return {
        "seed": SEED,
        "channels": CHANNELS,
        "options": {name: options_of(name) for name in registry.BLOCKS},
        "epochs": digits_epochs,
        "batch": BATCH,
        "rate": RATE,
        "momentum": MOMENTUM,
        "keras_backend": keras_backend,
        "unets": organs.SETTINGS.config() | {"epochs": unet_epochs, "phantoms": organs.COUNT},
    }


def train_blocks(
    names: Sequence[str],
    modules: Mapping[str, Any],
    data: Data,
    epochs: int,
    out: Path,
    on_step: Callable[[str], None],
) -> tuple[list[Result], dict[str, dict[str, Array]]]:
    """Train the network without a block, then with each block, and save the trained blocks.

    Args:
        names: the names of the blocks.
        modules: the module with the network, by backend.
        data: the digits.
        epochs: the number of epochs of each training.
        out: the output folder; weights are saved in its subfolder `weights`.
        on_step: a function that is called after every step with a text, the names of the block and the framework.

    Returns:
        The measurements of each network, the network without a block first, and the attention coefficients for the
        digits in SHOWN_DIGITS, by the name of the block and the backend.
    """
    results: list[Result] = []
    attention: dict[str, dict[str, Array]] = {}
    common: dict[str, Array] = {}   # initial weights of the network without a block
    for name in (None, *names):
        nets = create_nets(name, modules["torch"], common)
        common = common or portable.weights(nets["torch"])
        results.append(Result(name, *cost(nets["torch"].spec)))
        for backend, net in nets.items():
            train(results[-1], backend, modules[backend], net, data, epochs, on_step)
        if name:
            save(name, nets, out / "weights")
            for backend, net in nets.items():
                for part, array in by_name(adapter(backend).attention(net, [data.examples()])).items():
                    attention.setdefault(join_path(name, part), {})[backend] = array
    return results, attention


def digits() -> Data:
    """Return scikit-learn's 1,797 handwritten digits, of which TEST, stratified by digit, are the test images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    dataset = load_digits()
    images, labels = (dataset.images / 16).astype(np.float32)[:, None], dataset.target.astype(np.int64)
    images, test_images, labels, test_labels = train_test_split(
        images, labels, test_size=TEST, stratify=labels, random_state=SEED
    )
    return Data(images, labels, test_images, test_labels)


def options_of(name: str) -> dict[str, Any]:
    """Return the arguments of a block in the networks: those of OPTIONS, and others that 16 channels require."""
    return info(name).assumed(CHANNELS) | dict(OPTIONS.get(name, {}))


def create_nets(name: str | None, network_module: Any, common: dict[str, Array]) -> dict[str, Any]:
    """Create the network with a block in both frameworks, with the same initial weights.

    Args:
        name: the name of the block; None for no block.
        network_module: the module with the network in PyTorch.
        common: initial weights that replace the random ones, by name; networks with different blocks share these.

    Returns:
        The networks by backend.
    """
    net = network_module.create_seeded(SEED, CHANNELS, name, options_of(name) if name else {})
    portable.load_weights(net, portable.weights(net) | common)
    return {"torch": net, "keras": portable.convert(net, backend="keras")}


def cost(net: contract.Spec) -> tuple[int, int]:
    """Return the number of trainable parameters of a network, and its number of multiply-adds for one image."""
    return sum(w.size for w in net.weights.values() if w.trainable), net.macs((1, 1, 8, 8))


def train(
    result: Result, backend: str, module: Any, net: Any, data: Data, epochs: int, on_step: Callable[[str], None]
) -> None:
    """Train a network in place and test it; store losses, seconds and accuracy in `result`.

    Args:
        result: the measurements, changed in place.
        backend: the backend of the network.
        module: the module with `fit` and `predict` for the backend.
        net: the network.
        data: the digits.
        epochs: the number of epochs.
        on_step: the function to call after every step, as in `train_blocks`.
    """
    start_time = perf_counter()
    losses = result.losses[backend] = []
    for loss in module.fit(net, data.batches(epochs), RATE, MOMENTUM):
        losses.append(loss)
        on_step(f"{result.title}, {BACKENDS[backend]}")
    result.seconds[backend] = perf_counter() - start_time
    result.accuracy[backend] = float((module.predict(net, data.test_images).argmax(1) == data.test_labels).mean())


def save(name: str, nets: Mapping[str, Any], folder: Path) -> None:
    """Save the blocks of both stages of each network; check that the other framework loads the same weights.

    Args:
        name: the name of the block.
        nets: the network by backend.
        folder: the folder for the weights.

    Raises:
        RuntimeError: if the other framework loads different weights.
    """
    for (backend, net), loading_backend in zip(nets.items(), ("keras", "torch"), strict=True):
        (folder / backend).mkdir(parents=True, exist_ok=True)
        for stage in ("stage1", "stage2"):
            path, block = folder / backend / f"{name}.{stage}.safetensors", getattr(net, stage).block
            portable.save(block, path)
            loaded = portable.weights(portable.load(path, backend=loading_backend))
            saved = portable.weights(block)
            if key := next((key for key, array in saved.items() if not np.array_equal(array, loaded[key])), None):
                raise RuntimeError(
                    f"expected {loading_backend} to load the weights that {backend} saved in {path}, got different "
                    f"values of {key}"
                )


def _block_names(blocks: Sequence[str] | None) -> list[str]:
    """Return the registered names of blocks for names and aliases, without duplicates; all names for None.

    Raises:
        ValueError: if a name is unknown, or if there are no names.
    """
    if blocks is None:
        return list(registry.BLOCKS)
    if not blocks:
        raise ValueError(f"expected at least one block, got none: give names of {', '.join(registry.BLOCKS)}")
    for name in blocks:
        registry.locate(name)
    return list(dict.fromkeys(registry.ALIASES.get(name, name) for name in blocks))


def _import_modules(*names: str) -> list[Any]:
    """Import modules by their absolute names and return them.

    Raises:
        ModuleNotFoundError: if a package of the extra "demo" is not installed. The message has the install command.
    """
    try:
        return [import_module(name) for name in names]
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] not in PACKAGES:   # a dependency of an installed package is missing
            raise
        raise ModuleNotFoundError(missing(str(err.name), "demo", "the demo"), name=err.name) from err
