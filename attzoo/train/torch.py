"""Training in PyTorch, on one device, or under torchrun on one device per process."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import portable
from ..contract import Array
from ..data import IGNORE
from .losses.torch import loss as compute_loss
from .losses.torch import terms as loss_terms
from .settings import Settings
from .state import check_arrays
from .validation import Validation, merge

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def choose_device(name: str | None) -> torch.device:
    """Return the device of this name, by default a GPU for CUDA, if there is one, or else the CPU.

    Raises:
        ValueError: there is no such device, or the name has a number, although several processes have a GPU each.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it has no memory")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:   # AssertionError: torch without CUDA
        reason = str(err).partition("\n")[0]
        expected = "a device of PyTorch, such as cpu, cuda, cuda:1 or mps"
        raise ValueError(f"expected {expected}, got {name}: {reason}") from err
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = f"set --device {device.type}"
        raise ValueError(f"expected a device without a number for several processes, got {name}: {fix}")
    return device


@contextmanager
def process_group(device: str | None = None) -> Iterator[tuple[int, int]]:
    """Yield the rank of this process and the number of processes.

    If torchrun started several processes and no process group exists, initialize one for the device, and destroy it at
    the end. Raises the errors of `choose_device`.
    """
    has_cuda = choose_device(device).type == "cuda"
    is_new = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if is_new:
        if has_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if has_cuda else "gloo")
    try:
        yield _rank_and_world_size()
    finally:
        if is_new:
            dist.destroy_process_group()


def _rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Trainer:
    """Train a network on batches of images (N, C, *S) and masks (N, *S), and count its predictions.

    Args:
        settings: the settings of the run.
        make: a function that returns the network, called with backend=...
        classes: K, the number of classes.
        class_weights: the weight of each class in the loss; None weights all alike.
        device: the name of the device, see `choose_device`.
    """

    def __init__(
        self,
        settings: Settings,
        make: Callable[..., nn.Module],
        classes: int,
        class_weights: Sequence[float] | None = None,
        device: str | None = None,
    ) -> None:
        self.settings = settings
        self.framework = "torch"
        torch.manual_seed(settings.seed)
        self.rank, self.world_size = _rank_and_world_size()
        self.devices = self.world_size
        self.device = choose_device(device)   # `process_group` has set the number of the GPU
        self.network = make(backend="torch").to(self.device)
        self.model: nn.Module = self.network
        if self.world_size > 1:
            if self.device.type == "cuda":   # SyncBatchNorm does not run on CPUs: norms use the images of one process
                self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
            self.model = DistributedDataParallel(self.network)
        options = {"momentum": settings.momentum, "weight_decay": settings.decay}
        options = {name: value for name, value in options.items() if value is not None}
        self.optimizer = OPTIMIZERS[settings.optimizer](self.network.parameters(), lr=settings.rate, **options)
        self.dtype = getattr(torch, settings.precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self.device)
        self.validation = Validation.empty(classes)
        self.class_weights = class_weights
        self.weights = None if class_weights is None else torch.tensor(class_weights, device=self.device)
        average = None if settings.ema is None else get_ema_multi_avg_fn(settings.ema)
        self.average = AveragedModel(self.network, multi_avg_fn=average) if average else None

    def begin_epoch(self, rate: float, seed: int) -> None:
        """Set the learning rate and the seed of all random numbers for an epoch of training."""
        torch.manual_seed(seed + self.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.batches = 0

    def step(self, images: Array, masks: NDArray[Any]) -> float:
        """Train on a batch, add its predictions to the confusion matrix, and return the loss of the batch.

        images: (N, C, *S). masks: class indices, (N, *S). With several devices, they are the part of the batch for
        this device, and the loss is that of the whole batch.
        """
        accumulate = self.settings.accumulate
        is_last = (self.batches + 1) % accumulate == 0
        if self.batches % accumulate == 0:
            self.optimizer.zero_grad()
        x, y = self._tensors(images, masks)
        model = self.model
        with nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            logits = self._logits(model, x)
            loss = compute_loss(self.settings.loss, logits, y, self._sum_devices, self.weights)
            self.scaler.scale(loss * self.world_size / accumulate).backward()   # DDP averages gradients over devices
        if is_last:
            self._update()
        self.batches += 1
        self.confusion += self._confusions(logits, y).sum(0)
        return float(self._sum_devices(loss.detach()))

    def _update(self) -> None:
        """Make a step of the optimizer, with the gradient limited, and average the weights, if the settings say so."""
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Yield the network to validate and to save, which has the averaged weights if the settings say so."""
        yield self._averaged_network

    @property
    def _averaged_network(self) -> nn.Module:
        """The network with the averaged weights, or the trained network if weights are not averaged."""
        return self.network if self.average is None else self.average.module

    @torch.no_grad()
    def evaluate(self, images: Array, masks: NDArray[Any]) -> None:
        """Add the loss and the predictions of a batch to the validation, without training. Arguments as `step`."""
        network = self._averaged_network.eval()
        x, y = self._tensors(images, masks)
        logits = self._logits(network, x)
        pairs = loss_terms(self.settings.loss, logits, y, self.weights)
        terms = [torch.stack([total, count.float()]) for total, count in pairs]
        self.validation.add(self._confusions(logits, y).cpu().numpy(), torch.stack(terms).cpu().numpy())

    def pop_validation(self) -> Validation:
        """Return the validation of all images, of all devices, since the last call, and begin a new one."""
        parts, self.validation = [self.validation], Validation.empty(self.classes)
        if self.world_size > 1:
            part = parts[0]
            parts = parts * self.world_size
            dist.all_gather_object(parts, part)
        return merge(parts)

    @torch.no_grad()
    def logits(self, images: Array) -> Array:
        """Return the logits float32 (N, K, *S) of the network for images (N, C, *S), without training."""
        network = self._averaged_network.eval()
        return np.asarray(self._logits(network, torch.as_tensor(images).to(self.device)).float().cpu())

    def pop_confusion(self) -> NDArray[np.int64]:
        """Return the confusion matrix of training on all devices since the last call, and set it to 0.

        With several processes, set the network's buffers to the values in process 0 too.

        It is int64 (K, K): the number of pixels by true class (rows) and predicted class (columns).
        """
        if self.world_size > 1:
            dist.all_reduce(self.confusion)
            buffers = [*self.network.buffers(), *self._averaged_network.buffers()]
            for buffer in buffers:   # norms differ between processes on CPUs: keep those of rank 0
                dist.broadcast(buffer, 0)
        confusion: NDArray[np.int64] = self.confusion.cpu().numpy().copy()
        self.confusion.zero_()
        return confusion

    def state(self) -> dict[str, Array]:
        """Return all arrays of the network, its average, the optimizer and the gradient scaler, by name."""
        arrays = {f"network.{name}": array for name, array in portable.weights(self.network).items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            arrays |= {
                f"optimizer.{i}.{name}": tensor.cpu().numpy().copy()
                for name, tensor in slots.items()
                if tensor is not None
            }
        if self.average is not None:
            averages = portable.weights(self.average.module)
            arrays |= {f"average.{name}": array for name, array in averages.items()}
            arrays["averaged.steps"] = np.array(int(self.average.n_averaged))
        return arrays | {f"scaler.{name}": np.array(value) for name, value in self.scaler.state_dict().items()}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Load arrays that `state` returned. Raises ValueError, and changes nothing, if they do not fit."""
        slots = self._empty_slots()
        if self.scaler.is_enabled() and not any(name.startswith("optimizer.") for name in arrays):
            slots = {}   # every step overflowed, so the optimizer made none
        expected = {name: array for name, array in self.state().items() if not name.startswith("optimizer.")}
        check_arrays(arrays, expected | slots)
        parts: defaultdict[str, dict[str, Array]] = defaultdict(dict)
        for name, array in arrays.items():
            part, _, array_name = name.partition(".")
            parts[part][array_name] = array
        portable.load_weights(self.network, parts["network"])
        tensors: dict[int, dict[str, Tensor]] = {}
        for name, array in parts["optimizer"].items():
            i, _, slot = name.partition(".")
            tensors.setdefault(int(i), {})[slot] = torch.from_numpy(array.copy())
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": tensors})
        if self.average is not None:
            portable.load_weights(self.average.module, parts["average"])
            self.average.n_averaged.fill_(int(parts["averaged"]["steps"]))
        self.scaler.load_state_dict({name: array.item() for name, array in parts["scaler"].items()})

    def _empty_slots(self) -> dict[str, Array]:
        """Return arrays with the names, shapes and dtypes of the optimizer's state after its first step."""
        if self.settings.optimizer == "sgd":
            names: tuple[str, ...] = ("momentum_buffer",) if self.settings.momentum else ()
        else:
            names = ("step", "exp_avg", "exp_avg_sq")
        shapes = [tuple(parameter.shape) for parameter in self.network.parameters()]
        return {
            f"optimizer.{i}.{name}": np.empty(() if name == "step" else shape, np.float32)
            for i, shape in enumerate(shapes)
            for name in names
        }

    def _tensors(self, images: Array, masks: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Return images and masks as tensors on the device, without a copy if they are there already."""
        x, y = torch.as_tensor(images), torch.as_tensor(masks)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the output of the model, computed in the precision of the settings by autocast."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = model(x)
            return logits

    def _confusions(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the confusion matrix of each image, int64 (N, K, K), from logits (N, K, *S) and masks y (N, *S).

        One output predicts class 1 where its logit is 0 or more, as in `predict`. Pixels of IGNORE are not counted.
        """
        predictions = logits.detach().argmax(1) if logits.shape[1] > 1 else (logits.detach()[:, 0] >= 0).long()
        n, k = len(y), self.classes
        image = torch.arange(n, device=y.device).view(-1, *(1,) * (y.ndim - 1))
        cells = torch.where(y == IGNORE, n * k * k, (image * k + y) * k + predictions)   # the last cell is for ignored
        return torch.bincount(cells.flatten(), minlength=n * k * k + 1)[:-1].view(n, k, k)

    def _sum_devices(self, number: Tensor) -> Tensor:
        """Return the sum of a scalar tensor over all processes, of which each has one device."""
        if self.world_size > 1:
            number = number.clone()
            dist.all_reduce(number)
        return number
