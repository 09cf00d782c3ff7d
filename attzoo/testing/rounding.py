"""NumPy arrays whose operations have random rounding errors, as in a format with fewer digits.

A function of such arrays shows the effect of all rounding errors on its result. Perturbing only the inputs does
not show, for example, the errors of a batch norm that subtracts nearly equal values, each of which is rounded.

Source: D. S. Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA 1997,
CSD-970002, with an error of +-unit instead of a uniformly distributed error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..contract import Array

# Ufuncs that do not round.
EXACT: Final = {np.maximum, np.minimum, np.negative, np.positive, np.absolute, np.floor, np.sign}
PRODUCTS: Final = {np.dot, np.einsum}   # functions with rounding that are not ufuncs; others only move data


@dataclass(frozen=True)
class Rounding:
    """Random rounding errors: +-unit * max(|result|, underflow) for each element of a result.

    Attributes:
        rng: generator of the signs.
        unit: relative error.
        underflow: magnitude below which errors are absolute, because results underflow.
    """

    rng: np.random.Generator
    unit: float
    underflow: float

    def __call__(self, result: Any) -> Any:
        """Return `result` plus random errors."""
        signs = 2 * self.rng.integers(2, size=np.shape(result)) - 1
        return result + self.unit * signs * np.maximum(np.abs(result), self.underflow)


class Rounded(np.ndarray):
    """A floating-point array; `rounding` is applied to the results of all operations on it."""

    rounding: Rounding

    def __array_finalize__(self, source: Any) -> None:
        self.rounding = getattr(source, "rounding", None)   # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        result = getattr(ufunc, method)(*map(_as_plain_array, inputs), **kwargs)
        result = self._round(result) if ufunc not in EXACT else self._like(result)
        if out is None:
            return result
        out[0][...] = _as_plain_array(result)
        return out[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        return self._round(result) if func in PRODUCTS else self._like(result)

    def _round(self, result: Any) -> Any:
        """Return `result` with rounding errors, as a `Rounded` array if it is floating point."""
        return self._like(self.rounding(_as_plain_array(result))) if _is_float(result) else result

    def _like(self, result: Any) -> Any:
        """Return `result` as a `Rounded` array if it is floating point."""
        if not _is_float(result):
            return result
        result = np.asarray(result).view(Rounded)
        result.rounding = self.rounding
        return result


def rounded_arrays(arrays: Iterable[Array], rounding: Rounding) -> list[Array]:
    """Return `Rounded` copies of the arrays, with rounding errors in their values."""
    copies: list[Array] = []
    for array in arrays:
        rounded_array = rounding(array).view(Rounded)
        rounded_array.rounding = rounding
        copies.append(rounded_array)
    return copies


def _as_plain_array(value: Any) -> Any:
    """Return a plain array for a `Rounded` one."""
    return value.view(np.ndarray) if isinstance(value, Rounded) else value


def _is_float(value: Any) -> bool:
    """Whether a value is a floating-point array or scalar."""
    return isinstance(value, np.ndarray | np.floating) and bool(np.issubdtype(value.dtype, np.floating))
