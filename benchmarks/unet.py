"""attzoo's U-Net beside the same network in plain torch.nn, on one CPU thread: `python -m benchmarks.unet`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

import attzoo
from attzoo.contract import Array

from . import results
from .cpu import TRIES, deviation, keep_pages
from .memory import kept, peak
from .plain import AttUNet
from .results import Row
from .timer import interleave, paired, spread

SHAPE: Final = (2, 3, 128, 128)
CHANNELS: Final = (64, 128, 256, 512, 1024)
# Of the largest value of the float64 reference. In training, norms of the deepest level divide by the spread of 128
# values, and plain torch itself is 2e-5 off.
TOLERANCE: Final = {"inference": 1e-5, "inference, fused": 1e-5, "training": 1e-4}
FUSED: Final = 0.87   # of the plain network's time, at most
QUICK: Final = (1, 3, 32, 32), (4, 8, 16)   # shape, channels
METHOD: Final = (
    "Float32, one thread, the same weights in both. Times are CPU time of that thread; rounds are interleaved, every"
    " other one backwards; ratios are taken within a round, as median (quartiles). *Peer / itself* is a second copy of"
    " the peer in the same rounds: what it shows around 1 is noise. *Slower* and *faster* mean that the quartiles of"
    " ratio and control do not overlap. *Kept* is what autograd holds for the backward pass besides inputs and"
    " parameters, *peak* the most bytes of tensors alive at once in a training step besides weights; both ours / the"
    " peer's. *Fused* is `unet.fuse()`, fed channels last. The peer is benchmarks/plain.py."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 1 if ours is wrong, slower, larger at its peak, or if fusing saves less than FUSED."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unet", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny network and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds per row (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/unet.json"), help="default %(default)s")
    options = parser.parse_args(arguments)
    keep_pages()
    torch.set_num_threads(1)
    shape, channels = QUICK if options.quick else (SHAPE, CHANNELS)
    rows = measure(shape, channels, 3 if options.quick else options.rounds)
    for row in rows:
        print(results.line(row), flush=True)
    report = {
        "title": "The U-Net `leejunhyun` on one CPU thread, beside the same in plain torch",
        "method": METHOD,
        "command": shlex.join(["python", "-m", "benchmarks.unet", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": options.rounds,
        **results.facts(("attzoo", "torch", "numpy")),
    }
    results.write(options.out, report, rows)
    return 1 if any(row.verdict == "wrong" or not (options.quick or good(row)) for row in rows) else 0


def good(row: Row) -> bool:
    """Whether a row is as we promise."""
    small = row.peak is None or row.peak[0] < row.peak[1]
    quick = row.mode != "inference, fused" or (row.ratio is not None and row.ratio.median <= FUSED)
    return row.verdict != "slower" and small and quick


def measure(shape: tuple[int, ...], channels: tuple[int, ...], rounds: int) -> list[Row]:
    """Ours beside plain: inference, fused inference, training."""
    torch.manual_seed(0)
    plain: Any = AttUNet(shape[1], 1, channels)
    ours: Any = attzoo.create("unet", shape[1], 1, channels=channels, backend="torch", variant="leejunhyun")
    settle(plain, torch.randn(shape))
    attzoo.load_weights(ours, canonical(plain))
    x = torch.randn(shape)
    wide = deepcopy(plain).double()
    row = Row("unet", "plain torch", (shape,), "", "timed")
    rows = []
    for mode, mine in (("inference", ours), ("inference, fused", ours.fuse()), ("training", ours)):
        own = x.contiguous(memory_format=torch.channels_last) if "fused" in mode else x
        calls = {"ours": step(mine, mode, own), "peer": step(plain, mode, x), "again": step(deepcopy(plain), mode, x)}
        wanted = step(wide, mode, x.double())()
        off = deviation(calls["ours"](), wanted), deviation(calls["peer"](), wanted)
        rows.append(timed(replace(row, mode=mode, error=off), calls, rounds))
        if mode == "training":
            memory = (kept(ours, [x]), kept(plain, [x])), (peak(calls["ours"]), peak(calls["peer"]))
            rows[-1] = replace(rows[-1], saved=memory[0], peak=memory[1])
    return rows


def timed(row: Row, calls: Mapping[str, Callable[[], object]], rounds: int) -> Row:
    """The row with its times, unless an error makes them void."""
    assert row.error is not None
    if not max(row.error) <= TOLERANCE[row.mode]:   # NaN is wrong too
        return replace(row, status="wrong")
    for _ in range(TRIES):
        times = interleave(calls, rounds, 0.0)
        control = paired(times, "again", "peer")
        if results.steady(control):
            break
    seconds = {who: spread(times[who]).median for who in times}
    return replace(
        row, ours=seconds["ours"], theirs=seconds["peer"], ratio=paired(times, "ours", "peer"), control=control
    )


def step(net: nn.Module, mode: str, x: Tensor) -> Callable[[], list[Tensor]]:
    """A call that gives the output; in training it also leaves gradients of the output's mean square."""

    def call() -> list[Tensor]:
        net.train(mode == "training")
        if mode != "training":
            with torch.no_grad():
                return [net(x)]
        net.zero_grad()
        y = net(x)
        y.square().mean().backward()
        return [y.detach()]

    return call


def settle(net: nn.Module, x: Tensor) -> None:
    """Give the running statistics values that come from data."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(x)


def canonical(plain: AttUNet) -> dict[str, Array]:
    """The plain network's arrays under attzoo's names."""
    convs = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
    parts = {"down": ("encoder", convs), "merge": ("decoder", convs), "up": ("up", {"1": "conv", "2": "norm"})}
    gate = {"x.0": "skip", "x.1": "skip_norm", "g.0": "gating", "g.1": "gating_norm"}
    parts["gate"] = "skip", gate | {"psi.0": "psi", "psi.1": "psi_norm"}
    found = {}
    for name, tensor in plain.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        leaf = {"running_mean": "mean", "running_var": "var"}.get(leaf, leaf)
        if path != "head":
            kind, level, inner = path.split(".", 2)
            path = f"{parts[kind][0]}.{level}.{parts[kind][1][inner]}"
        array = tensor.numpy()
        found[f"{path}.{leaf}"] = array[:, :, 0, 0] if array.shape[2:] == (1, 1) else array
    return found


if __name__ == "__main__":
    sys.exit(main())
