"""Which form of a block computes: one setting for the whole process, read at every call."""

from __future__ import annotations

import os
from typing import Final

from . import contract

KERNELS: Final = ("auto", "eager", "triton")
VARIABLE: Final = "ATTZOO_KERNELS"

chosen: str = contract.choice(VARIABLE, os.environ.get(VARIABLE) or "auto", KERNELS)


class kernels:   # in small letters, for it is called like a function
    """Choose what computes PyTorch blocks: from here on or, in a `with`, inside it; in all threads.

    mode: "auto" takes a fused kernel where a recorded measurement says that it wins, and the plain form elsewhere;
    "eager" takes the plain form always; "triton" takes the kernels, and a call raises RuntimeError, with the reason,
    where there is none. The environment variable ATTZOO_KERNELS sets any of them at start. Keras blocks ignore it.
    Raises ValueError for another mode.

    >>> with kernels("eager"):
    ...     pass
    """

    def __init__(self, mode: str) -> None:
        global chosen
        self.mode = contract.choice("kernels", mode, KERNELS)
        self.before, chosen = chosen, self.mode

    def __repr__(self) -> str:
        return f"kernels({self.mode!r})"

    def __enter__(self) -> None:
        global chosen
        chosen = self.mode

    def __exit__(self, *error: object) -> None:
        global chosen
        chosen = self.before
