"""Arrays that compute as in a format of fewer digits: every result is off by a rounding error of random sign.

Running a function on such arrays shows how far rounding moves what it computes, wherever in it the rounding happens.
Perturbing the inputs alone does not: it misses a batch norm that subtracts nearly equal values, each of them rounded.

Source: D. S. Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA 1997,
CSD-970002, with an error of +-unit in place of a uniform one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..contract import Array

EXACT: Final = {np.maximum, np.minimum, np.negative, np.positive, np.absolute, np.floor, np.sign}   # these never round
PRODUCTS: Final = {np.dot, np.einsum}   # of the functions that are no ufuncs, those that compute; the others move data


@dataclass(frozen=True)
class Rounding:
    """The error of one operation: +-unit times the result's size, or times `least` where the result is smaller.

    least: where results underflow. Errors below it are absolute.
    """

    rng: np.random.Generator
    unit: float
    least: float

    def __call__(self, result: Any) -> Any:
        """`result`, each element off by its error."""
        signs = 2 * self.rng.integers(2, size=np.shape(result)) - 1
        return result + self.unit * signs * np.maximum(np.abs(result), self.least)


class Rounded(np.ndarray):
    """An array of floats; each element of what is computed from it is off by `rounding`."""

    rounding: Rounding

    def __array_finalize__(self, source: Any) -> None:
        self.rounding = getattr(source, "rounding", None)   # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        result = getattr(ufunc, method)(*map(_exact, inputs), **kwargs)
        result = self._round(result) if ufunc not in EXACT else self._like(result)
        if out is None:
            return result
        out[0][...] = _exact(result)
        return out[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        return self._round(result) if func in PRODUCTS else self._like(result)

    def _round(self, result: Any) -> Any:
        return self._like(self.rounding(_exact(result))) if _is_float(result) else result

    def _like(self, result: Any) -> Any:
        """`result` as an array of this kind, if it holds floats."""
        if not _is_float(result):
            return result
        result = np.asarray(result).view(Rounded)
        result.rounding = self.rounding
        return result


def rounded_arrays(arrays: Iterable[Array], rounding: Rounding) -> list[Array]:
    """Copies of the arrays that compute with rounding, their own values moved by it too."""
    copies: list[Array] = []
    for array in arrays:
        copy = rounding(array).view(Rounded)
        copy.rounding = rounding
        copies.append(copy)
    return copies


def _exact(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Rounded) else value


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.floating) and bool(np.issubdtype(value.dtype, np.floating))
