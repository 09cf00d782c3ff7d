"""Training in PyTorch, on one device or, under torchrun, on as many as there are processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import portable
from ..contract import Array
from ..data import IGNORE
from .losses.torch import loss as loss_of
from .settings import Settings
from .state import check_arrays

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Rank of the process and the number of processes, process_group with the others while this lasts.

    Where torchrun started several, and nobody has process_group them yet; a group that is there stays.
    """
    began = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if began:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield _place()
    finally:
        if began:
            dist.destroy_process_group()


def _place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Trainer:
    """A network in training: steps on batches (N, C, *S) and (N, *S), counts of what it found, and its state."""

    def __init__(self, settings: Settings, make: Callable[..., nn.Module], classes: int) -> None:
        self.settings = settings
        self.framework = "torch"
        torch.manual_seed(settings.seed)
        self.rank, self.world = _place()
        self.devices = self.world
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")   # the one that `process_group` has set
        self.network = make(backend="torch").to(self.device)
        self.model: nn.Module = self.network
        if self.world > 1:
            if self.device.type == "cuda":   # there is none for CPUs: norms see their own process's images there
                self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
            self.model = DistributedDataParallel(self.network)
        options = {"momentum": settings.momentum, "weight_decay": settings.decay}
        options = {name: value for name, value in options.items() if value is not None}
        self.optimizer = OPTIMIZERS[settings.optimizer](self.network.parameters(), lr=settings.rate, **options)
        self.dtype = getattr(torch, settings.precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.found = torch.zeros(classes, classes, dtype=torch.int64, device=self.device)

    def begin(self, rate: float, seed: int) -> None:
        """Begin an epoch, whose random draws follow `seed`."""
        torch.manual_seed(seed + self.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.done = 0

    def step(self, images: Array, masks: NDArray[Any]) -> float:
        """Learn from a batch; the loss on it, on all devices."""
        parts = self.settings.accumulate
        last = (self.done + 1) % parts == 0
        if self.done % parts == 0:
            self.optimizer.zero_grad()
        x, y = self._tensors(images, masks)
        with nullcontext() if last or not isinstance(self.model, DistributedDataParallel) else self.model.no_sync():
            logits = self._logits(self.model, x)
            loss = loss_of(self.settings.loss, logits, y, self._everywhere)
            self.scaler.scale(loss * self.world / parts).backward()   # of several devices, gradients are averaged
        if last:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.done += 1
        self._count(logits, y)
        return float(self._everywhere(loss.detach()))

    @torch.no_grad()
    def evaluate(self, images: Array, masks: NDArray[Any]) -> None:
        """Count what the network finds in a batch, without learning."""
        self.network.eval()
        x, y = self._tensors(images, masks)
        self._count(self._logits(self.network, x), y)

    def counts(self) -> NDArray[np.int64]:
        """(K, K): pixels on all devices since this was last asked, truth by prediction."""
        if self.world > 1:
            dist.all_reduce(self.found)
            for buffer in self.network.buffers():   # norms saw each process's own images: go on with the first's
                dist.broadcast(buffer, 0)
        found: NDArray[np.int64] = self.found.cpu().numpy().copy()
        self.found.zero_()
        return found

    def state(self) -> dict[str, Array]:
        """Every array that training goes on from."""
        arrays = {f"network.{name}": a for name, a in portable.weights(self.network).items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer.{i}.{name}": t.cpu().numpy().copy() for name, t in slots.items() if t is not None}
        return arrays | {f"scaler.{name}": np.array(v) for name, v in self.scaler.state_dict().items()}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Go on from a state. Raises ValueError, before it changes anything, for one that is not of such a trainer."""
        slots = self._slots()
        if self.scaler.is_enabled() and not any(name.startswith("optimizer.") for name in arrays):
            slots = {}   # steps that overflowed are none
        check_arrays(arrays, {name: a for name, a in self.state().items() if not name.startswith("optimizer.")} | slots)
        parts: dict[str, dict[str, Array]] = {"network": {}, "optimizer": {}, "scaler": {}}
        for name, array in arrays.items():
            head, _, tail = name.partition(".")
            parts[head][tail] = array
        portable.load_weights(self.network, parts["network"])
        found: dict[int, dict[str, Tensor]] = {}
        for name, array in parts["optimizer"].items():
            i, _, slot = name.partition(".")
            found.setdefault(int(i), {})[slot] = torch.from_numpy(array.copy())
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": found})
        self.scaler.load_state_dict({name: array.item() for name, array in parts["scaler"].items()})

    def _slots(self) -> dict[str, Array]:
        """What the optimizer keeps once it has made a step, empty."""
        if self.settings.optimizer == "sgd":
            names: tuple[str, ...] = ("momentum_buffer",) if self.settings.momentum else ()
        else:
            names = ("step", "exp_avg", "exp_avg_sq")
        sizes = [tuple(p.shape) for p in self.network.parameters()]
        return {
            f"optimizer.{i}.{name}": np.empty(() if name == "step" else size, np.float32)
            for i, size in enumerate(sizes)
            for name in names
        }

    def _tensors(self, images: Array, masks: NDArray[Any]) -> tuple[Tensor, Tensor]:
        x, y = torch.as_tensor(images), torch.as_tensor(masks)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _logits(self, model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = model(x)
            return logits

    def _count(self, logits: Tensor, y: Tensor) -> None:
        """Add what was found in each pixel; of one output, whether it is more than 0."""
        found = logits.detach().argmax(1) if logits.shape[1] > 1 else (logits.detach()[:, 0] > 0).long()
        k = len(self.found)
        cells = torch.where(y == IGNORE, k * k, y * k + found)   # the last one is of pixels that count nowhere
        self.found += torch.bincount(cells.flatten(), minlength=k * k + 1)[:-1].view(k, k)

    def _everywhere(self, number: Tensor) -> Tensor:
        if self.world > 1:
            number = number.clone()
            dist.all_reduce(number)
        return number

