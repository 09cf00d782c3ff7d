"""Batches of a dataset, the same for one process and for several, and after a resume."""

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
    "worker processes import the script that starts the training, so put its work under "
    "`if __name__ == \"__main__\":`, or set workers=0"
)


@dataclass
class Batches:
    """A batch sampler: yields one list of keys (epoch, index) for each batch of an epoch.

    With several processes, yields one process's share of every batch. The shares are disjoint, and together they are
    the batch that a single process would have. Without `drop_last`, some shares of the last batch may be
    smaller or empty, and empty ones are left out.

    Args:
        count: the number of samples in an epoch.
        batch: the number of samples in a batch, over all processes.
        seed: seed of the order, with the epoch.
        shuffle: whether to shuffle the samples of each epoch; False keeps the order of the dataset.
        drop_last: whether to leave out a last batch that is not full.
        rank: the number of this process, from 0.
        world_size: the number of processes.
        epoch: the epoch of the keys, from 0; set it before iterating.
        group: the number of consecutive samples that stay together when shuffled; it divides `count`.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is too small, `rank` is too large, `world_size` does not divide `batch`, `group` does not
            divide `count`, or with `drop_last` there are fewer samples than one batch holds.
    """

    count: int
    batch: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    group: int = 1

    def __post_init__(self) -> None:
        """Check the fields. Raises the errors of the class."""
        for name, minimum in (("count", 1), ("batch", 1), ("seed", 0), ("rank", 0), ("world_size", 1), ("epoch", 0)):
            contract.integer(name, getattr(self, name), minimum)
        if self.count % contract.integer("group", self.group, 1):
            raise ValueError(f"count must be a multiple of group={self.group}, got {self.count}")
        if self.rank >= self.world_size:
            raise ValueError(f"rank must be less than world_size, got rank={self.rank}, world_size={self.world_size}")
        if self.batch % self.world_size:
            got = f"{self.batch}: set another --batch"
            raise ValueError(f"batch must be a multiple of the {self.world_size} processes, got {got}")
        if self.drop_last and self.count < self.batch:
            got = f"{self.count}: set a smaller --batch"
            raise ValueError(f"expected at least {self.batch} samples to fill a batch, got {got}")

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield, for each batch, the list of keys (epoch, index) that this process loads."""
        order = np.arange(self.count // self.group)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        indices = (order[:, None] * self.group + np.arange(self.group)).ravel()
        keys = [(self.epoch, int(index)) for index in indices]
        for first_index in range(0, self._used(), self.batch):
            if share := keys[first_index : first_index + self.batch][self.rank :: self.world_size]:
                yield share

    def __len__(self) -> int:
        """Return the number of batches for this process in an epoch."""
        full_batches, remaining_samples = divmod(self._used(), self.batch)
        return full_batches + (remaining_samples > self.rank)

    def _used(self) -> int:
        """Return the number of samples of an epoch that are in batches, over all processes."""
        return self.count - self.count % self.batch if self.drop_last else self.count


class Loader:
    """Load batches of a dataset as torch tensors: images (N, C, *S), masks (N, *S). NumPy takes them without a copy.

    Args:
        dataset: indexed by (epoch, index).
        batches: the keys of each batch.
        workers: the number of processes that load in advance; they start at the first batch and stay for all epochs. 0
            loads in this process.
        pin: whether to copy batches to pinned memory, which makes copies to a GPU faster, if torch has a GPU.

    Raises:
        TypeError: `workers` is not an integer.
        ValueError: `workers` is negative, or samples of different sizes would be in one batch.
    """

    def __init__(self, dataset: Dataset, batches: Batches, workers: int = 0, pin: bool = False) -> None:
        import torch
        from torch.utils.data import DataLoader

        if batches.batch > batches.world_size:
            dataset.common_size()
        contract.integer("workers", workers, 0)
        self.batches = batches
        self._loader: DataLoader[Any] = DataLoader(
            _BatchDataset(dataset),   # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=_identity,
            num_workers=workers,
            pin_memory=pin and torch.cuda.is_available(),
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,   # TensorFlow does not support fork
            generator=torch.Generator(),   # the default is the generator that dropout uses
        )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images, masks) of each batch of an epoch, counted from 0.

        Raises the errors of the dataset, also from workers, and RuntimeError if a worker process ended.
        """
        self.batches.epoch = number
        for batch in self._load():
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _load(self) -> Iterator[Any]:
        """Yield each batch, or the exception of a sample in it. Raises RuntimeError, with causes, if a worker ended."""
        try:
            yield from self._loader
        except RuntimeError as err:
            if "exited unexpectedly" not in str(err):
                raise
            causes = f"either memory ran out: set fewer workers; or {GUARD}"
            raise RuntimeError(f"expected running worker processes, got one that ended: {causes}") from err


def check_guard(workers: int) -> None:
    """Raise RuntimeError if this process is a worker that just imports the user's script, which calls `train`.

    Only checks if `workers`, the number of worker processes, is above 0.
    """
    frame = currentframe() if workers else None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            raise RuntimeError(f"expected no training in a worker process, got a script that starts one: {GUARD}")
        frame = frame.f_back


class _BatchDataset:
    """A dataset for DataLoader, which loads all samples of a batch in one call."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[Key]) -> tuple[torch.Tensor, torch.Tensor] | Exception:
        """Return images (N, C, *S) and masks (N, *S) at these keys, or the ValueError or OSError of a sample."""
        import torch

        try:
            images, masks = zip(*(self.dataset[key] for key in keys), strict=True)
        except (ValueError, OSError) as err:   # DataLoader would raise it with a traceback as its text
            return err
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def _identity(batch: Any) -> Any:
    """Return `batch`: `_BatchDataset` has stacked its tensors already."""
    return batch
