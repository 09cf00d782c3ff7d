"""Fine-tune a small network without and with attached blocks, and compare the two values of `start`.

The network of `attzoo demo` is trained on scikit-learn's handwritten digits, and fine-tuned on the same digits with
noise. All weights are trained. Runs of the same seed begin with the same trained network and use the same batches.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

import numpy as np
import torch

import attzoo
from attzoo.contract import STARTS, Array
from attzoo.demo.run import BATCH, CHANNELS, EPOCHS, MOMENTUM, RATE, Data, digits, options_of
from attzoo.demo.torch import create_seeded, fit, one_thread, predict

RESULTS: Final = Path(__file__).with_name("finetune.json")
AFTER: Final = "stage?.norm2"   # the end of both residual branches
NOISE: Final = 0.4   # standard deviation of the noise; the pixels are in [0, 1]
SEEDS: Final = 3
TESTED: Final = (1, 2, 6)   # epochs of fine-tuning after which a network is tested


@dataclass(frozen=True)
class Row:
    """The results of one block and start, with one number per seed.

    Args:
        block: name of the block; "" for the network without blocks.
        start: as in `attach`; "" without a block.
        parameters: number of parameters of the attached blocks.
        before: accuracy in [0, 1] on the test images without noise, before fine-tuning.
        after: accuracy in [0, 1] on the test images with noise, by the number of epochs of fine-tuning.

    """

    block: str
    start: str
    parameters: int
    before: list[float]
    after: dict[str, list[float]]


def run(on_row: Callable[[Row], None] = lambda row: None, seeds: int = SEEDS) -> dict[str, Any]:
    """Return the settings, and the rows of every block with one input. `on_row` is called with each new row."""
    names = [name for name in attzoo.names() if len(attzoo.info(name).inputs) == 1]
    rows = []
    with one_thread():
        trained = [_trained(seed) for seed in range(seeds)]
        for block, start in [("", ""), *((name, start) for name in names for start in reversed(STARTS))]:
            rows.append(_row(block, start, trained))
            on_row(rows[-1])
    settings = {"torch": torch.__version__, "seeds": seeds, "epochs": EPOCHS[0], "noise": NOISE}
    return {"settings": settings, "rows": [asdict(row) for row in rows]}


def _trained(seed: int) -> torch.nn.Module:
    """Return a network without blocks, trained on the images without noise."""
    net = create_seeded(seed, CHANNELS)
    for _ in fit(net, (batch for epoch in _epochs(0.0, EPOCHS[0], seed) for batch in epoch), RATE, MOMENTUM):
        pass
    return net


def _row(block: str, start: str, trained: list[torch.nn.Module]) -> Row:
    """Attach a block to copies of the trained networks, fine-tune them, and return the row of their accuracies.

    trained: one network per seed, in the order of the seeds. start: as in `attzoo.attach`.
    """
    before, after, parameters = [], {str(count): list[float]() for count in TESTED}, 0
    for seed, original in enumerate(trained):
        net: Any = copy.deepcopy(original).train()
        if block:
            torch.manual_seed(seed)
            report = attzoo.attach(net, block, after=AFTER, start=start, **options_of(block))
            parameters = report.parameters
        before.append(_accuracy(net, 0.0))
        for count, accuracy in _fine_tuned(net, seed):
            after[str(count)].append(accuracy)
    return Row(block, start, parameters, before, after)


def _fine_tuned(net: Any, seed: int) -> Iterator[tuple[int, float]]:
    """Fine-tune a network in place. Yield each number of epochs in TESTED, with the accuracy after it."""
    epochs = list(_epochs(NOISE, max(TESTED), seed))
    steps = fit(net, (batch for epoch in epochs for batch in epoch), RATE, MOMENTUM)
    for count, epoch in enumerate(epochs, 1):
        net.train()
        for _ in epoch:
            next(steps)
        if count in TESTED:
            yield count, _accuracy(net, NOISE)


@lru_cache
def _data(noise: float) -> Data:
    """Return the digits with noise of this standard deviation, which is the same in every call."""
    data, random = digits(), np.random.default_rng(0)
    images, test = (x + random.normal(0, noise, x.shape).astype(x.dtype) for x in (data.images, data.test_images))
    return replace(data, images=images, test_images=test)


def _epochs(noise: float, count: int, seed: int) -> Iterator[list[tuple[Array, Any]]]:
    """Yield the list of batches of each of `count` epochs, in an order by `seed`. An incomplete batch is dropped.

    noise: standard deviation of the noise of the images.
    """
    data, random = _data(noise), np.random.default_rng(seed)
    for _ in range(count):
        order = random.permutation(len(data.labels))
        batches = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
        yield [(data.images[indices], data.labels[indices]) for indices in batches]


def _accuracy(net: Any, noise: float) -> float:
    """Return the accuracy, in [0, 1], of a network in evaluation mode on the test images."""
    data = _data(noise)
    return float((predict(net, data.test_images).argmax(1) == data.test_labels).mean())


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table: mean and standard deviation over the seeds, in percent."""
    tested = list(results["rows"][0]["after"])
    headings = ["block", "start", "parameters", "before", *(f"{n} epoch{'s' * (n != '1')}" for n in tested)]
    lines = [headings, ["---", "---", *["--:"] * (len(headings) - 2)]]
    for row in results["rows"]:
        accuracies = [row["before"], *(row["after"][n] for n in tested)]
        cells = [f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}" for values in accuracies]
        lines.append([row["block"] or "none", row["start"] or "-", f"{row['parameters']:,}", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def read() -> dict[str, Any]:
    """Return the results in benchmarks/finetune.json."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results
