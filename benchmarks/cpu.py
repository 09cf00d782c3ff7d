"""attzoo's torch blocks beside the usual ones, on one CPU thread: `python -m benchmarks.cpu`.

Before anything is timed, outputs and input gradients of both are compared with a float64 reference, from the same
weights; what is wrong is reported and not timed.
"""

from __future__ import annotations

import argparse
import ctypes
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

import attzoo
from attzoo.contract import Array

from . import results
from .memory import kept
from .peers import INSTALL, PEERS
from .results import Row
from .timer import interleave, paired, spread

MAPS: Final = ((8, 64, 56, 56), (8, 256, 56, 56), (8, 512, 28, 28), (32, 2048, 7, 7))   # of ResNets at 224 pixels
SHAPES: Final = {
    "timm SEModule": MAPS,
    "timm EcaModule": MAPS,
    "timm CbamModule": MAPS,
    "MONAI AttentionBlock": ((2, 64, 128, 128),),
}
QUICK: Final = ((2, 16, 14, 14),)
MODES: Final = ("inference", "training")
TOLERANCE: Final = 1e-5   # of the largest value of the reference, for float32
SECONDS: Final = 0.02     # that one provider gets in one round
TRIES: Final = 3          # a row whose control is unsteady is timed again
METHOD: Final = (
    "Float32, contiguous, one thread. Times are CPU time of that thread; rounds are interleaved, every other one"
    " backwards; ratios are taken within a round, as median (quartiles). *Peer / itself* is a second copy of the peer"
    " in the same rounds: what it shows around 1 is noise. *Slower* and *faster* mean that the quartiles of ratio and"
    " control do not overlap. *Kept* is what autograd holds for the backward pass besides inputs and parameters, ours"
    " / the peer's. The last eight results are kept alive, so that each call writes outside the cache;"
    " glibc is told to keep freed pages, for page faults would drown the rest."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite, or with --report draw the table of an old run; 1 if a block is wrong or slower than its peer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one tiny shape and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=31, help="interleaved rounds per row (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.json"), help="default %(default)s")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print the table of this result file and stop")
    options = parser.parse_args(arguments)
    if options.report:
        print(results.table(results.read(options.report)), end="")
        return 0
    keep_pages()
    torch.set_num_threads(1)
    rounds = 5 if options.quick else options.rounds
    rows = []
    for name, shapes in SHAPES.items():
        for shape in QUICK if options.quick else shapes:
            for mode in MODES:
                rows.append(measure(name, shape, mode, rounds))
                print(results.line(rows[-1]), flush=True)
    report = {
        "title": "Blocks on one CPU thread, beside their peers",
        "method": METHOD,
        "command": shlex.join(["python", "-m", "benchmarks.cpu", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": rounds,
        **results.facts(("attzoo", "torch", "numpy", "timm", "monai", "torchvision")),
    }
    results.write(options.out, report, rows)
    if any(row.status == "absent" for row in rows):
        print(f"absent peers: {INSTALL}")
    wrong, slower = (sum(row.verdict == verdict for row in rows) for verdict in ("wrong", "slower"))
    print(f"{len(rows)} rows in {options.out}: {wrong} wrong, {slower} slower")
    return 1 if wrong or (slower and not options.quick) else 0


def measure(name: str, shape: tuple[int, ...], mode: str, rounds: int) -> Row:
    """Our block beside PEERS[name]; every input has this shape, and so has a gate's gating signal."""
    peer, rng = PEERS[name], np.random.default_rng(0)
    gating = {"gating_channels": shape[1]} if peer.block == "attention_gate" else {}
    ours = attzoo.create(peer.block, shape[1], backend="torch", variant=peer.variant, **gating)
    spec: Any = ours.spec
    row = Row(peer.block, name, (shape,) * len(spec.inputs), mode, "timed")
    arrays = draw(spec, rng)
    attzoo.load_weights(ours, arrays)
    try:
        blocks = {"ours": ours, "peer": peer.build(spec, arrays), "again": peer.build(spec, arrays)}
    except ModuleNotFoundError:
        return replace(row, status="absent")
    inputs = [torch.from_numpy(rng.normal(size=shape).astype("float32")) for shape in row.shapes]
    cotangent = torch.from_numpy(rng.normal(size=shape).astype("float32"))
    wanted = reference(ours, arrays, mode, inputs, cotangent)
    off = {who: deviation(run(block, mode, inputs, cotangent), wanted) for who, block in blocks.items()}
    row = replace(row, error=(off["ours"], off["peer"]))
    if not max(off.values()) <= TOLERANCE:   # NaN is wrong too
        return replace(row, status="wrong")
    calls = {who: partial(run, block, mode, inputs, cotangent) for who, block in blocks.items()}
    for _ in range(TRIES):
        times = interleave(calls, rounds, SECONDS)
        control = paired(times, "again", "peer")
        if results.steady(control):
            break
    if mode == "training":
        row = replace(row, saved=(kept(ours, inputs), kept(blocks["peer"], inputs)))
    seconds = {who: spread(times[who]).median for who in times}
    return replace(
        row, ours=seconds["ours"], theirs=seconds["peer"], ratio=paired(times, "ours", "peer"), control=control
    )


def run(block: nn.Module, mode: str, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The output; in training, and the gradients of sum(output * cotangent) for the inputs and the parameters."""
    block.train(mode == "training")
    if mode == "inference":
        with torch.no_grad():
            return [block(*inputs)]
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = block(*inputs)
    gradients = torch.autograd.grad(y, [*inputs, *block.parameters()], cotangent)
    return [y.detach(), *gradients]


def reference(
    ours: nn.Module, arrays: Mapping[str, Array], mode: str, inputs: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor]:
    """What `run` should give, in float64: the output as the NumPy spec means it, the inputs' gradients as torch's."""
    spec: Any = ours.spec
    weights = {name: array.astype("float64") for name, array in arrays.items()}
    y = spec(*(x.double().numpy() for x in inputs), weights=weights, training=mode == "training")
    wide = run(deepcopy(ours).double(), mode, [x.double() for x in inputs], cotangent.double())
    return [torch.from_numpy(y), *wide[1 : 1 + len(inputs)]]


def deviation(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest |got - wanted| as a part of the largest |wanted|, over all tensors that are wanted."""
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, wanted, strict=False))


def draw(spec: Any, rng: np.random.Generator) -> dict[str, Array]:
    """Float32 arrays for a block: normal, of variance 1 / fan-in; variances between 1/2 and 3/2."""
    arrays = {}
    for name, weight in spec.weights.items():
        fan_in = max(1, prod(weight.shape[1:]))
        even = name.endswith("var")
        array = rng.uniform(0.5, 1.5, weight.shape) if even else rng.normal(0, fan_in**-0.5, weight.shape)
        arrays[name] = array.astype("float32")
    return arrays


def keep_pages() -> None:
    """Tell glibc not to give freed memory back; elsewhere do nothing."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3   # as malloc.h numbers them
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
        mallopt(top_pad, 64 << 20)


if __name__ == "__main__":
    sys.exit(main())
