"""Compile the fused kernels of a suite ahead, in many processes: Triton keeps on disk what it has compiled.

Compiling takes a second or two for each kernel, dtype and layout, one after the other when cases are timed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Final

from .cases import Case

PROCESSES: Final = 12   # each holds a CUDA context and one case's tensors


def compile_ahead(cases: Sequence[Case]) -> None:
    """Call the fused form of every case once; what fails here will be reported where it is timed."""
    wanted = [case for case in cases if case.block != "none"]
    workers = min(PROCESSES, os.cpu_count() or 1, len(wanted))
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for outcome in [pool.submit(_call, case) for case in wanted]:
                outcome.exception()


def _call(case: Case) -> None:
    import torch

    from .providers import contenders
    from .runs import FUSED
    from .subjects import subject

    torch.set_num_threads(1)
    if case.network:   # its kernels are the same for fewer images, and processes share the memory
        case = replace(case, shapes=tuple((min(16, shape[0]), *shape[1:]) for shape in case.shapes))
    for contender in contenders(subject(case, "cuda")):
        if contender.provider == FUSED:
            contender.outputs()
    torch.cuda.empty_cache()
