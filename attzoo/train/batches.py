"""Batches of a dataset, epoch by epoch: the same for one process and for many, and the same after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import currentframe
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .. import contract
from .data import Dataset, Key

if TYPE_CHECKING:
    import torch

GUARD: Final = (
    "Workers import the script that starts them, so it has to begin its work under `if __name__ == \"__main__\":`, "
    "or to set workers=0"
)


@dataclass
class Batches:
    """The keys of one epoch in lists, one for each batch: all of them, or one process's share of every batch.

    count: samples in an epoch. batch: samples in a batch, over all processes. seed: of the order. shuffle: False keeps
    the order of the dataset. drop_last: leave out what fills no batch. rank, world_size: which process of how many;
    the shares of one batch make up the batch that a single process would have. Without drop_last, the last batch may
    leave some processes less than others, or nothing. epoch: of the keys, to be set before iterating.
    Raises TypeError or ValueError for values that do not fit together.
    """

    count: int
    batch: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    epoch: int = 0

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("batch", 1), ("seed", 0), ("rank", 0), ("world_size", 1), ("epoch", 0)):
            contract.integer(name, getattr(self, name), least)
        if self.rank >= self.world_size:
            raise ValueError(f"rank must be below world_size, got {self.rank} of {self.world_size}")
        if self.batch % self.world_size:
            raise ValueError(f"batch must be a multiple of {self.world_size}, the processes, got {self.batch}")
        if self.drop_last and self.count < self.batch:
            raise ValueError(f"expected at least {self.batch} samples to fill a batch, got {self.count}")

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self.count)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        keys = [(self.epoch, int(index)) for index in order]
        for start in range(0, self._used(), self.batch):
            if share := keys[start : start + self.batch][self.rank :: self.world_size]:
                yield share

    def __len__(self) -> int:
        """Batches in this process's share of an epoch."""
        full, rest = divmod(self._used(), self.batch)
        return full + (rest > self.rank)

    def _used(self) -> int:
        return self.count - self.count % self.batch if self.drop_last else self.count


class Loader:
    """Batches of a dataset as torch tensors, which NumPy takes without a copy: images (N, C, *S), masks (N, *S).

    workers: processes that read ahead, started fresh at the first batch and kept for the epochs that follow; 0 reads
    in this one. pin: keep batches where torch's GPU, if there is one, takes them from while it works.
    Raises ValueError where samples of different sizes would share a batch.
    """

    def __init__(self, dataset: Dataset, batches: Batches, workers: int = 0, pin: bool = False) -> None:
        import torch
        from torch.utils.data import DataLoader

        if batches.batch > batches.world_size:
            dataset.common_size()
        contract.integer("workers", workers, 0)
        self.batches = batches
        self._loader: DataLoader[Any] = DataLoader(
            _Stacks(dataset),   # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=pin and torch.cuda.is_available(),
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,   # TensorFlow may live here, and does not fork
            generator=torch.Generator(),   # or every epoch would draw from the generator that dropout draws from
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch, counted from 0. Raises what the dataset does, as it does, from a worker too."""
        self.batches.epoch = number
        batches = self._batches()
        for found in batches:
            if isinstance(found, Exception):
                raise found
            yield found

    def _batches(self) -> Iterator[Any]:
        """What the workers give. Raises RuntimeError, with what may help, where one has ended."""
        try:
            yield from self._loader
        except RuntimeError as err:
            if "exited unexpectedly" not in str(err):
                raise
            memory = "where memory ran out, fewer workers take less"
            raise RuntimeError(f"expected workers to read ahead, got one that ended. {GUARD}; {memory}") from err


def check_guard(workers: int) -> None:
    """Raise RuntimeError where a worker, in importing the user's script, has come to start workers itself."""
    frame = currentframe() if workers else None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            raise RuntimeError(f"expected workers to find nothing to do in the script, got a training. {GUARD}")
        frame = frame.f_back


class _Stacks:
    """A dataset by lists of keys, for torch: (images, masks), or the error that came, whole."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[Key]) -> tuple[torch.Tensor, torch.Tensor] | Exception:
        import torch

        try:
            images, masks = zip(*(self.dataset[key] for key in keys), strict=True)
        except (ValueError, OSError) as err:   # torch would bury it in a traceback
            return err
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def _as_it_is(found: Any) -> Any:
    return found
