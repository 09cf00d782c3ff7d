"""Folds of a cross-validation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..contract import short_repr


def parse_fold(fold: Any) -> tuple[int, int]:
    """Return (i, n) of the text "i/n": fold i of n, counted from 1.

    Raises:
        TypeError: `fold` is not a text.
        ValueError: the text is not "i/n" with 1 <= i <= n and n >= 2.
    """
    if not isinstance(fold, str):
        raise TypeError(f"fold must be a text such as 2/5, got {short_repr(fold)}")
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", fold)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count or count < 2:
        raise ValueError(f"fold must be I/N with 1 <= I <= N and N >= 2, such as 2/5, got {short_repr(fold)}")
    return number, count


def validation_indices(count: int, fold: str, seed: int) -> list[int]:
    """Return the sorted indices of the samples to validate on in a fold.

    The samples are shuffled by the seed, and sample j of the shuffled ones is in fold j % n + 1 of n. Every sample is
    in one fold, and the sizes of folds differ by at most 1.

    Args:
        count: the number of samples, sorted by name.
        fold: a text as in `parse_fold`.
        seed: the seed, the same for all folds.

    Raises:
        ValueError: there are fewer samples than folds.
    """
    number, folds = parse_fold(fold)
    if count < folds:
        raise ValueError(f"expected at least {folds} images for {folds} folds, got {count}: set fewer folds by --fold")
    return sorted(map(int, np.random.default_rng(seed).permutation(count)[number - 1 :: folds]))
