"""Compile the fused kernels of a suite in parallel processes before timing. Triton caches compiled kernels on disk.

Compiling takes one or two seconds for each kernel, dtype and layout, one after the other while cases are timed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Final

from .cases import Case

PROCESSES: Final = 12   # each has a CUDA context and the tensors of one case


def compile_ahead(cases: Sequence[Case]) -> None:
    """Call the fused form of every case once, in parallel processes. Errors are ignored: timing reports them."""
    with_block = [case for case in cases if case.block != "none"]
    workers = min(PROCESSES, os.cpu_count() or 1, len(with_block))
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for future in [pool.submit(_call, case) for case in with_block]:
                future.exception()


def _call(case: Case) -> None:
    """Call the fused form of a case once, which compiles its kernels."""
    import torch

    from .providers import torch_candidates
    from .runs import FUSED
    from .subjects import create_subject

    torch.set_num_threads(1)
    if case.network:   # fewer images need the same kernels; the processes share the device's memory
        case = replace(case, shapes=tuple((min(16, shape[0]), *shape[1:]) for shape in case.shapes))
    for candidate in torch_candidates(create_subject(case, "cuda")):
        if candidate.provider == FUSED:
            candidate.outputs()
    torch.cuda.empty_cache()
